"""The command on a family that megatron-bridge maps: online, tensor parallel, continued in another layout with vLLM."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GemmaConfig

from tests.forked import processes
from tests.integration import tiny_task

FOLDER = Path(os.environ.get("SPPO_BRIDGE_FOLDER", tiny_task.ROOT / ".bridge"))
STAND_IN = tiny_task.ROOT / "tests" / "distributed" / "bridge" / "stand_in"
HAS_BRIDGE = (FOLDER / "megatron" / "bridge").is_dir()


def make_task(folder: Path) -> Path:
    """The demo's task, with a Gemma of random weights."""
    task = tiny_task.make_task(folder)
    tokenizer = AutoTokenizer.from_pretrained(task / "start")
    shutil.rmtree(task / "start")
    tokenizer.save_pretrained(task / "start")
    config = GemmaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(task / "start")
    return task


def run(arguments: list[str], ranks: int, with_bridge: bool = True) -> subprocess.CompletedProcess[str]:
    environment = tiny_task.environment()
    if with_bridge:
        environment["PYTHONPATH"] = os.pathsep.join(map(str, (STAND_IN, FOLDER, tiny_task.ROOT)))
    command = tiny_task.command(arguments, ranks)
    return processes.run(command, 240, env=environment)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make test installs it")
@pytest.mark.skipif(
    not HAS_BRIDGE,
    reason="megatron-bridge is not installed: pip install --no-deps --ignore-requires-python --target .bridge "
    "-r requirements/megatron-bridge.txt",
)
def test_online_and_continued_in_another_layout(tmp_path: Path) -> None:
    task, output = make_task(tmp_path / "task"), tmp_path / "run"
    changes = {"train.iterations": 1, "checkpoint.save_interval": 1}
    parallel = {"parallelism.tensor_model_parallel_size": 2, "parallelism.sequence_parallel": "true"}
    done = run(tiny_task.overrides(task, output, **changes, **parallel), ranks=2)
    assert done.returncode == 0, done.stderr[-4000:]
    before = tiny_task.steps(output)
    changes |= {"train.iterations": 2, "checkpoint.load": "latest", "rollout": "vllm", "rollout.verify": "true"}
    changes |= {"rollout.vllm.kv_cache_memory_mib": 64}
    done = run(tiny_task.overrides(task, output, **changes), ranks=1)
    assert done.returncode == 0, done.stderr[-4000:]
    steps = tiny_task.steps(output)
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6] and steps[:3] == before
    # What was sampled, by the model itself with its cache and by vLLM with the weights it was sent, is what is trained.
    assert all(line["mismatch_max"] < 1e-5 for line in steps)
    assert all(line["grad_norm"] > 0 for line in steps)
    _, info = AutoModelForCausalLM.from_pretrained(output / "hf", output_loading_info=True)
    assert not any(info.values()), info


def test_without_the_bridge_one_message_says_what_to_install(tmp_path: Path) -> None:
    task = make_task(tmp_path / "task")
    done = run(tiny_task.overrides(task, tmp_path / "run"), ranks=1, with_bridge=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("configuration error")]
    assert "'gemma' is not among this project's own (llama, mistral," in message
    assert "pip install --no-deps megatron-bridge" in message
