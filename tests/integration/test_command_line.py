"""A configuration that can't run: one clear message from rank 0, exit code 2, soon."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sppo_megatron.cluster.output_lock import LOCK_FILE, locked_output
from tests.integration import tiny_task


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_task.make_task(tmp_path_factory.mktemp("cli") / "task")


BAD = {
    "unknown-key": ({"train.iteration": 3}, 1, ["train.iteration", "did you mean", "train.iterations"]),
    "wrong-type": ({"train.iterations": "many"}, 1, ["iterations", "many"]),
    "both-eta-and-tau": ({"objective.tau": 0.5}, 1, ["objective.eta", "objective.tau", "exactly one"]),
    "heads": ({"parallelism.tensor_model_parallel_size": 3}, 3, ["3", "4 attention heads", "1, 2, 4"]),
    "layers": ({"parallelism.pipeline_model_parallel_size": 4}, 4, ["2 layers", "1, 2"]),
    "world": ({"parallelism.tensor_model_parallel_size": 4}, 2, ["2 processes", "--nproc-per-node"]),
    "sequence-parallel": ({"parallelism.sequence_parallel": "true"}, 1, ["sequence_parallel", "above 1"]),
    "no-model": ({"model.hf_path": "/nowhere/at-all"}, 1, ["model.hf_path", "/nowhere/at-all"]),
    "fp8-without-te": ({"precision.fp8": "hybrid", "precision.dtype": "bf16"}, 1, ["Transformer Engine"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_configuration(name: str, task: Path, tmp_path: Path) -> None:
    changes, ranks, words = BAD[name]
    arguments = tiny_task.overrides(task, tmp_path / "run", **changes)
    done = tiny_task.run(arguments, ranks=ranks, fresh=name == "world")  # one by the real command line
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("configuration error:")]
    for word in words:
        assert word in done.stderr, f"{word!r} is not in: {message}"
    assert done.returncode == (2 if ranks == 1 else 1)  # torchrun's own code is 1
    if ranks > 1:
        assert "exitcode  : 2" in done.stderr and f"traceback : {message}" in done.stderr
        assert "To enable traceback" not in done.stderr
    assert 'Traceback (most recent call last):\n  File "<frozen runpy>"' not in done.stdout
    assert not (tmp_path / "run").exists()


def test_prints_its_configuration(task: Path, tmp_path: Path) -> None:
    done = tiny_task.run([*tiny_task.overrides(task, tmp_path), "--cfg"], fresh=True)
    assert done.returncode == 0 and "tensor_model_parallel_size: 1" in done.stdout


def test_a_malformed_prompt_file_names_its_lines(task: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "1=", "answer": "1"}\n{"prompt": 3}\nnot json\n')
    done = tiny_task.run(tiny_task.overrides(task, tmp_path / "run", **{"data.train_path": prompts}))
    assert done.returncode == 2
    assert "2" in done.stderr and "3" in done.stderr and "prompts.jsonl" in done.stderr


def test_an_output_folder_in_use_is_refused_and_left_alone(task: Path, tmp_path: Path) -> None:
    """This process holds the folder, as a job that is still running would."""
    output = tmp_path / "run"
    half_written = output / "checkpoints" / "step_00000003.partial"
    with locked_output(output):
        half_written.mkdir(parents=True)
        done = tiny_task.run([*tiny_task.overrides(task, output), "checkpoint.load=latest"])
        assert done.returncode == 2
        assert f"output_dir={output} is in use by process {os.getpid()} on {os.uname().nodename}" in done.stderr
        assert half_written.exists() and {path.name for path in output.iterdir()} == {"checkpoints", LOCK_FILE}
