"""Promises 1 and 2: the same losses, gradient norms and weights in every layout, equal to the plain definition's.

The layouts run through the real command's code, `sppo_megatron.train.run`, on the real Megatron-Core; one torchrun for
all cases of a number of ranks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.distributed.layouts import models, reference
from tests.distributed.layouts.cases import CASES, Case

HERE = Path(__file__).parent
ROOT = HERE.parents[2]

TOLERANCE = 3e-4  # relative, fp32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layouts")
    for kind in models.CONFIGS:
        models.make_model(kind, path / kind)
    models.write_rollouts(path / "rollouts.jsonl")
    return path


@pytest.fixture(scope="module")
def outputs(folder: Path):
    """The output folder of a case; all cases of a world size run when the first is asked for."""

    @cache
    def run(world_size: int) -> None:
        runs = [(case.name, overrides(case, folder)) for case in CASES if case.world_size == world_size]
        todo = folder / f"runs-{world_size}.json"
        todo.write_text(json.dumps(runs))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
        done = subprocess.run(
            [*command, str(HERE / "worker.py"), str(todo)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]

    def of(case: Case) -> Path:
        run(case.world_size)
        return folder / "out" / case.name

    return of


def overrides(case: Case, folder: Path) -> list[str]:
    s = case.settings
    values = {
        "model.hf_path": folder / case.model,
        "model.make_vocab_size_divisible_by": 4,
        "precision.dtype": "fp32",
        "rollout.engine": "replay",
        "rollout.path": folder / "rollouts.jsonl",
        "rollout.temperature": s.temperature,
        "model.moe_aux_loss_coeff": s.aux_loss_coeff,
        "objective.eta": s.eta,
        "objective.baseline": s.baseline,
        "objective.loss_agg_mode": "seq-mean-token-mean" if s.length_weight else "seq-mean-token-sum",
        "objective.loss_scale": "kimi" if s.kimi_scale else "sppo",
        "train.iterations": s.iterations,
        "train.prompts_per_iteration": s.groups_per_iteration,
        "train.epochs_per_iteration": s.epochs,
        "train.minibatch_size": s.minibatch_size,
        "train.shuffle": "false",
        "optimizer.lr": s.lr,
        "optimizer.min_lr": s.lr / 10 if s.lr_decay else 0.0,
        "optimizer.lr_warmup_steps": s.lr_warmup_steps,
        "optimizer.lr_decay_style": "linear" if s.lr_decay else "constant",
        "optimizer.weight_decay": s.weight_decay,
        "optimizer.adam_eps": s.adam_eps,
        "optimizer.clip_grad": s.clip_grad,
        "logger.tensorboard": "false",
        "logger.progress": "false",
        "output_dir": folder / "out" / case.name,
    }
    return [f"{key}={value}" for key, value in (values | case.overrides).items()]


@cache
def expected(folder: Path, model: str, settings: reference.Settings) -> reference.Result:
    return reference.train(folder / model, folder / "rollouts.jsonl", settings)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_plain_definition(case: Case, folder: Path, outputs) -> None:
    output = outputs(case)
    want = expected(folder, case.model, case.settings)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(want.losses) + 1))
    assert [line["loss"] for line in lines] == pytest.approx(want.losses, rel=TOLERANCE)
    assert [line["grad_norm"] for line in lines] == pytest.approx(want.grad_norms, rel=TOLERANCE)

    model, info = AutoModelForCausalLM.from_pretrained(output / "hf", dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    final = model.state_dict()
    assert final.keys() == want.final.keys()
    for name, weight in final.items():
        # relative to the update, not to the weight: a run that learned nothing would pass the latter
        update = (want.final[name] - want.start[name]).norm()
        error = (weight - want.final[name]).norm() / update
        assert error <= 10 * TOLERANCE, f"{name}: error {error:.1e} of the update"
        assert torch.allclose(weight, want.final[name], rtol=TOLERANCE, atol=TOLERANCE * float(weight.abs().max()))


def test_training_checkpoints_convert_to_hugging_face(folder: Path, outputs) -> None:
    """From whatever layout saved them: the same bytes as the run's own export."""
    cases = [case for case in CASES if case.name in ("one-process", "pp2-vpp2", "ep2-qwen2-moe-packed")]
    todo = {}
    for case in cases:
        (checkpoint,) = (outputs(case) / "checkpoints").glob("step_*/megatron")
        source = ["--megatron-path", str(checkpoint), "--hf-path", str(folder / case.model)]
        target = ["--output", str(folder / "converted" / case.name)]
        todo[case.name] = ["convert_megatron_to_hf", *source, *target]
    (folder / "commands.json").write_text(json.dumps(todo))
    done = subprocess.run(
        [sys.executable, str(HERE.parent / "conversion" / "commands.py"), str(folder / "commands.json")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads(done.stdout.splitlines()[-1])
    for case in cases:
        assert results[case.name][0] == 0, results[case.name]
        own = load_file(outputs(case) / "hf" / "model.safetensors")
        converted = load_file(folder / "converted" / case.name / "model.safetensors")
        assert own.keys() == converted.keys()
        assert all(torch.equal(own[name], converted[name]) for name in own)
