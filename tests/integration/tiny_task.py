"""A tiny model with a tokenizer and prompts, made by the demo's own code, and runs of the real command on it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.forked import processes

ROOT = Path(__file__).parents[2]
TIMINGS = (
    "seconds_sync",
    "seconds_rollout",
    "seconds_reward",
    "seconds_log_probs",
    "seconds_train",
    "tokens_per_second",
    "rollout_tokens_per_second",
)


def demo_module():
    spec = importlib.util.spec_from_file_location("demo_prepare", ROOT / "examples" / "demo" / "prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_task(folder: Path) -> Path:
    """folder/start, folder/train.jsonl, folder/eval.jsonl: the demo's task with an untrained model."""
    demo = demo_module()
    folder.mkdir(parents=True, exist_ok=True)
    numbers = demo.make_numbers(40, seed=1)
    problems = demo.reversals(numbers)
    demo.write_problems(folder / "train.jsonl", problems[:32])
    demo.write_problems(folder / "eval.jsonl", problems[32:])
    demo.make_tokenizer().save_pretrained(folder / "start")
    demo.make_model(seed=1).save_pretrained(folder / "start")
    return folder


def overrides(task: Path, output: Path, **changes: object) -> list[str]:
    """An online run of three iterations with three optimizer steps each."""
    values = {
        "precision": "fp32",
        "objective": "sppo_mean",
        "model.hf_path": task / "start",
        "model.make_vocab_size_divisible_by": 8,
        "data.train_path": task / "train.jsonl",
        "data.eval_path": task / "eval.jsonl",
        "reward.kind": "character_share",
        "rollout.num_samples_per_prompt": 4,
        "rollout.max_response_length": 6,
        "train.iterations": 3,
        "train.prompts_per_iteration": 6,
        "train.minibatch_size": 8,
        "train.micro_batch_size": 4,
        "optimizer.lr": 1e-3,
        "logger.tensorboard": "false",
        "output_dir": output,
    }
    return [f"{key}={value}" for key, value in (values | changes).items()]


def command(arguments: list[str], ranks: int) -> list[str]:
    launcher = [] if ranks == 1 else ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    return [sys.executable, "-m", *launcher, "sppo_megatron.train", *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tools'}", "COLUMNS": "200"}


def run(
    arguments: list[str], ranks: int = 1, timeout: float = 240, cwd: Path | None = None, fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    """The command, run to its end. fresh: started by its command line, and not forked (tests/forked/processes.py)."""
    return processes.run(command(arguments, ranks), timeout, fresh=fresh, env=environment(), cwd=cwd)


def wait_for_step(output: Path, step: int, process: subprocess.Popen) -> None:
    """Returns as soon as that optimizer step is logged."""
    metrics = output / "metrics.jsonl"
    deadline = time.monotonic() + 180
    while not (metrics.exists() and any(line.get("step", 0) >= step for line in _whole_lines(metrics))):
        assert time.monotonic() < deadline and process.poll() is None, "the run ended before it got there"
        time.sleep(0.01)


def _whole_lines(path: Path) -> list[dict]:
    """Without the one that is being written."""
    return [json.loads(line) for line in path.read_text().rpartition("\n")[0].splitlines()]


def kill_after(step: int, arguments: list[str], ranks: int, output: Path) -> None:
    """SIGKILL to every process of the job once that optimizer step is logged."""
    process = processes.start(
        command(arguments, ranks),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for_step(output, step, process)
    finally:
        processes.kill(process)


def steps(output: Path) -> list[dict]:
    """The lines of optimizer steps, without what depends on the clock."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines if "step" in line]


def evaluations(output: Path) -> list[dict]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "eval_step" in line]


if __name__ == "__main__":  # makes the task in a folder, and prints the overrides of a run on it
    folder = Path(sys.argv[1])
    print(*overrides(make_task(folder), folder / "run"))
