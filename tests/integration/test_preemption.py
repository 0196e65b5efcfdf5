"""SIGTERM while the real command waits for what takes long: all ranks have saved and left long before 20 seconds."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.forked import processes
from tests.integration import tiny_task

SLOW = """
import pathlib, time

def score(prompt, response, answer):
    if pathlib.Path({flag!r}).exists():
        pathlib.Path({flag!r} + ".asked").touch()
        time.sleep(120)
    return float(len(response))
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_task.make_task(tmp_path_factory.mktemp("task"))


def wait_until(is_so, job: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline and job.poll() is None
        time.sleep(0.02)


def stop(job: subprocess.Popen, process: psutil.Process | subprocess.Popen) -> str:
    """What the job said after SIGTERM to this process of it, and that it was quick."""
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, stderr = job.communicate(timeout=60)
    assert time.monotonic() - started < 20, stderr[-3000:]
    assert "told to stop: saving a checkpoint" in stderr or "stopped after optimizer step" in stderr, stderr[-3000:]
    return stderr


def start(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen:
    return processes.start(tiny_task.command(arguments, 2), env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("whom", ["torchrun", "one rank"])
def test_while_a_reward_is_waited_for(task: Path, tmp_path: Path, whom: str) -> None:
    """One rank knows it first: the others, which don't, wait for it. Then the run continues as if nothing had been."""
    flag, output = tmp_path / "slow", tmp_path / "run"
    (tmp_path / "slow_reward.py").write_text(SLOW.format(flag=str(flag)))
    environment = tiny_task.environment()
    environment["PYTHONPATH"] = f"{tmp_path}:{environment['PYTHONPATH']}"
    own = {"reward.kind": "function", "reward.function": "slow_reward:score", "reward.timeout_s": 600}
    arguments = tiny_task.overrides(task, output, **own, **{"data.eval_path": "null"})
    job = start(arguments, environment)
    wait_until(lambda: (output / "metrics.jsonl").exists() and tiny_task.steps(output), job)
    flag.touch()  # from the next iteration on
    wait_until(lambda: Path(f"{flag}.asked").exists(), job)
    rank = psutil.Process(job.pid).children()[-1]
    left_behind = psutil.Process(job.pid).children(recursive=True)
    stderr = stop(job, job if whom == "torchrun" else rank)
    steps = tiny_task.steps(output)[-1]["step"]
    assert steps in (3, 6) and f"stopped after optimizer step {steps}; continue with checkpoint.load=latest" in stderr
    assert [path.name for path in (output / "checkpoints").iterdir()] == [f"step_{steps:08d}"]
    _, alive = psutil.wait_procs(left_behind, timeout=10)
    assert not alive, "a reward's worker outlived the run"
    flag.unlink()
    again = processes.run(tiny_task.command([*arguments, "checkpoint.load=latest"], 2), 240, env=environment)
    assert again.returncode == 0, again.stderr[-3000:]
    whole = tiny_task.overrides(task, tmp_path / "whole", **own, **{"data.eval_path": "null"})
    assert processes.run(tiny_task.command(whole, 2), 240, env=environment).returncode == 0
    assert tiny_task.steps(output) == tiny_task.steps(tmp_path / "whole")


SLOW_PASS = """
import pathlib, sys, time

trainer = sys.modules.get("sppo_megatron.policy.step.forward_step")  # in no worker
if trainer is not None:
    forward = trainer.ForwardStep._routing_padding

    def slowly(*arguments):
        if pathlib.Path({flag!r}).exists():
            pathlib.Path({flag!r} + ".asked").touch()
            time.sleep(4)
        return forward(*arguments)

    trainer.ForwardStep._routing_padding = slowly

def score(prompt, response, answer):
    return float(len(response))
"""


def test_while_log_probs_are_computed(task: Path, tmp_path: Path) -> None:
    """Each of 24 micro-batches takes 4 seconds, on two ranks of a pipeline, one of which is told."""
    flag, output = tmp_path / "slow", tmp_path / "run"
    (tmp_path / "slow_pass.py").write_text(SLOW_PASS.format(flag=str(flag)))
    environment = tiny_task.environment()
    environment["PYTHONPATH"] = f"{tmp_path}:{environment['PYTHONPATH']}"
    own = {"reward.kind": "function", "reward.function": "slow_pass:score", "data.eval_path": "null"}
    sizes = {"parallelism.pipeline_model_parallel_size": 2, "train.max_tokens_per_micro_batch": "null"}
    sizes |= {"train.micro_batch_size": 1}
    job = start(tiny_task.overrides(task, output, **own, **sizes), environment)
    wait_until(lambda: (output / "metrics.jsonl").exists() and tiny_task.steps(output), job)
    flag.touch()
    wait_until(lambda: Path(f"{flag}.asked").exists(), job)
    stderr = stop(job, psutil.Process(job.pid).children()[-1])
    assert "told to stop" in stderr or "stopped after optimizer step" in stderr


@pytest.mark.parametrize("parallelism", ["tp2", "single"])
def test_while_the_model_samples(task: Path, tmp_path: Path, parallelism: str) -> None:
    """Two ranks that sample together, and two that sample each for itself; one of them is told."""
    changes = {"parallelism": parallelism, "rollout.num_samples_per_prompt": 4000, "rollout.batch_size": 8}
    job = start(tiny_task.overrides(task, tmp_path / "run", **changes), tiny_task.environment())
    wait_until(lambda: (tmp_path / "run" / "evaluations" / "iteration_000000.jsonl").exists(), job)
    time.sleep(1.0)
    assert "stopped after optimizer step 0" in stop(job, psutil.Process(job.pid).children()[-1])
