"""bf16 and fp16 on CPU: the same update as fp32 up to the format's rounding, with the optimizer's own fp32 weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.distributed.layouts import models
from tests.integration import tiny_task


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("precision")
    models.make_model("qwen2-tied", path / "model")
    models.write_rollouts(path / "rollouts.jsonl")
    return path


def run(folder: Path, dtype: str, ranks: int = 1, **changes: object) -> list[dict]:
    output = folder / f"{dtype}-{ranks}"
    values = {
        "model.hf_path": folder / "model",
        "model.make_vocab_size_divisible_by": 4,
        "precision": dtype,
        "precision.initial_loss_scale": 1024,
        "rollout": "replay",
        "rollout.path": folder / "rollouts.jsonl",
        "objective.eta": 2,
        "train.iterations": 2,
        "train.prompts_per_iteration": 3,
        "train.minibatch_size": 6,
        "train.micro_batch_size": 3,
        "train.shuffle": "false",
        "optimizer.lr": 1e-3,
        "optimizer.adam_eps": 1e-5,
        "logger.tensorboard": "false",
        "output_dir": output,
    }
    done = tiny_task.run([f"{key}={value}" for key, value in (values | changes).items()], ranks=ranks)
    assert done.returncode == 0, done.stderr[-4000:]
    return tiny_task.steps(output)


@pytest.fixture(scope="module")
def fp32(folder: Path) -> list[dict]:
    return run(folder, "fp32")


@pytest.mark.parametrize(("dtype", "ranks"), [("bf16", 1), ("bf16", 2), ("fp16", 1)])
def test_first_step_is_fp32s(dtype: str, ranks: int, folder: Path, fp32: list[dict]) -> None:
    changes = {} if ranks == 1 else {"parallelism": "tp2", "parallelism.sequence_parallel": "true"}
    steps = run(folder, dtype, ranks, **changes)
    assert len(steps) == len(fp32) == 4
    assert all(step["skipped"] == 0 for step in steps)
    # the first step is on policy: s is rounding, so the loss is the targets' alone and the gradient the first's
    assert steps[0]["loss"] == pytest.approx(fp32[0]["loss"], rel=2e-2)
    assert steps[0]["grad_norm"] == pytest.approx(fp32[0]["grad_norm"], rel=5e-2)
    # later ones carry the format's noise in s itself, some tenths of a nat over a response in bf16
    for step, expected in zip(steps[1:], fp32[1:], strict=True):
        assert abs(step["log_ratio_mean"] - expected["log_ratio_mean"]) < 0.2
        assert step["residual_rms"] == pytest.approx(expected["residual_rms"], abs=0.3)
    saved = AutoModelForCausalLM.from_pretrained(folder / f"{dtype}-{ranks}" / "hf", dtype="auto")
    assert str(saved.dtype).endswith({"bf16": "bfloat16", "fp16": "float16"}[dtype])
