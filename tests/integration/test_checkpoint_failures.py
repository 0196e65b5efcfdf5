"""Disks fill up, files get cut, nodes are taken back: one clear message, and a good checkpoint to go on from."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.forked import processes
from tests.integration import tiny_task

SAVE_OFTEN = {"checkpoint.save_interval": 2, "checkpoint.keep_last": 4, "parallelism": "tp2"}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_task.make_task(tmp_path_factory.mktemp("failures") / "task")


@pytest.fixture(scope="module")
def finished(task: Path) -> Path:
    output = task.parent / "finished"
    done = tiny_task.run(tiny_task.overrides(task, output, **SAVE_OFTEN), ranks=2)
    assert done.returncode == 0, done.stderr[-4000:]
    return output


def same_weights(output: Path, other: Path) -> None:
    expected = load_file(other / "hf" / "model.safetensors")
    for name, weight in load_file(output / "hf" / "model.safetensors").items():
        assert torch.equal(weight, expected[name]), name


def names(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").iterdir())


def test_full_disk(task: Path, finished: Path, tmp_path: Path) -> None:
    """A tmpfs with room for two checkpoints and a half."""
    one = sum(f.stat().st_size for f in (finished / "checkpoints" / "step_00000009").rglob("*") if f.is_file())
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(2.5 * one)}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a tmpfs can't be mounted here (needs root)")
    try:
        arguments = tiny_task.overrides(task, disk / "run", **SAVE_OFTEN)
        done = tiny_task.run(arguments, ranks=2, timeout=120)
        assert done.returncode != 0
        (message,) = [line for line in done.stderr.splitlines() if line.startswith("training stopped:")]
        assert "step_00000006" in message and "could not be written" in message and "make room" in message
        assert names(disk / "run") == ["step_00000002", "step_00000004"]

        subprocess.run(["mount", "-o", f"remount,size={20 * one}", str(disk)], check=True)
        done = tiny_task.run([*arguments, "checkpoint.load=latest"], ranks=2)
        assert done.returncode == 0, done.stderr[-4000:]
        assert tiny_task.steps(disk / "run") == tiny_task.steps(finished)
        same_weights(disk / "run", finished)
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def test_truncated_file(task: Path, finished: Path) -> None:
    output = task.parent / "truncated"
    arguments = tiny_task.overrides(task, output, **SAVE_OFTEN)
    assert tiny_task.run([*arguments, "train.iterations=2"], ranks=2).returncode == 0
    assert names(output)[-1] == "step_00000006"
    victim = max((output / "checkpoints" / "step_00000006").rglob("*.distcp"), key=lambda f: f.stat().st_size)
    os.truncate(victim, victim.stat().st_size - 7)

    done = tiny_task.run([*arguments, "checkpoint.load=latest"], ranks=2)
    assert done.returncode != 0 and "exitcode  : 2" in done.stderr
    older = output / "checkpoints" / "step_00000004"
    assert "is damaged" in done.stderr and victim.name in done.stderr and f"checkpoint.load={older}" in done.stderr

    done = tiny_task.run([*arguments, f"checkpoint.load={older}"], ranks=2)
    assert done.returncode == 0, done.stderr[-4000:]
    assert tiny_task.steps(output) == tiny_task.steps(finished)
    same_weights(output, finished)


def test_checkpoint_of_another_model(task: Path, finished: Path, tmp_path: Path) -> None:
    demo = tiny_task.demo_module()
    model = demo.make_model(seed=0)
    values = model.config.to_dict() | {"num_hidden_layers": 4, "layer_types": None}
    type(model)(type(model.config)(**values)).save_pretrained(tmp_path / "deeper")
    demo.make_tokenizer().save_pretrained(tmp_path / "deeper")
    changes = {"model.hf_path": tmp_path / "deeper", "checkpoint.load": finished / "checkpoints" / "step_00000009"}
    done = tiny_task.run(tiny_task.overrides(task, tmp_path / "run", **changes))
    assert done.returncode == 2
    assert "does not fit this run" in done.stderr and "num_layers is 2 there and 4 here" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_preempted(task: Path, finished: Path, number: signal.Signals) -> None:
    """The signal to one rank: the mini-batch ends, all ranks save and exit with 75; the same command continues."""
    output = task.parent / f"preempted-{number.name}"
    arguments = tiny_task.overrides(task, output, parallelism="tp2")
    job = subprocess.Popen(
        tiny_task.command(arguments, ranks=2), env=tiny_task.environment(), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not ((output / "metrics.jsonl").exists() and tiny_task.steps(output)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ranks = psutil.Process(job.pid).children()
    ranks[-1].send_signal(number)
    _, stderr = job.communicate(timeout=120)
    assert "exitcode  : 75" in stderr, stderr[-3000:]
    (saved,) = names(output)
    assert int(saved[5:]) == tiny_task.steps(output)[-1]["step"] < 9, "saved where it stopped, and stopped early"

    done = tiny_task.run([*arguments, "checkpoint.load=latest"], ranks=2)
    assert done.returncode == 0, done.stderr[-4000:]
    assert tiny_task.steps(output) == tiny_task.steps(finished)
    same_weights(output, finished)


def test_torchrun_restarts_from_the_latest_by_itself(task: Path, finished: Path) -> None:
    """--max-restarts after the death of one rank, with no checkpoint.load on the command line."""
    output = task.parent / "restarted"
    command = tiny_task.command(tiny_task.overrides(task, output, **SAVE_OFTEN), ranks=2)
    command.insert(command.index("--standalone"), "--max-restarts=1")
    job = processes.start(command, env=tiny_task.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (output / "checkpoints" / "step_00000004").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    psutil.Process(job.pid).children()[-1].kill()
    assert job.wait(timeout=180) == 0
    assert tiny_task.steps(output) == tiny_task.steps(finished)
    same_weights(output, finished)
