"""The progress display in a pipe, in a real pseudo-terminal, and the summary."""

import io
import os
import pty
import subprocess
import sys

import rich.console
import torch

from sppo_megatron.train.tracking.console import ProgressDisplay, print_summary

SCRIPT = """
from sppo_megatron.train.tracking.console import ProgressDisplay
with ProgressDisplay(3, completed=1) as progress:
    for done in (2, 3):
        metrics = {"reward_mean": 0.5, "loss": 0.01, "log_ratio_abs_max": 0.2, "tokens_per_second": 12345.6}
        progress.update(done, metrics)
"""


def test_one_plain_line_per_iteration_in_a_pipe():
    output = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    numbers = "reward 0.500  loss 0.01  |log-ratio| 0.2  tokens/s 12,346"
    assert output.splitlines() == [f"iteration 2/3  {numbers}", f"iteration 3/3  {numbers}"]


def test_a_bar_in_a_terminal():
    reader, writer = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=writer,
        stderr=writer,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "140"},
    )
    os.close(writer)
    output = b""
    try:
        while chunk := os.read(reader, 4096):
            output += chunk
    except OSError:  # the terminal's other end is closed
        pass
    assert process.wait() == 0
    text = output.decode()
    assert "3/3" in text
    assert "━" in text
    assert "reward 0.500" in text
    assert "iteration 2/3  " not in text


def shown(function, **arguments):
    console = rich.console.Console(file=io.StringIO(), width=100)
    function(console=console, **arguments)
    return console.file.getvalue()


def test_missing_and_broken_numbers():
    def update(console):
        ProgressDisplay(5, console=console).update(1, {"loss": float("nan"), "reward_mean": torch.tensor(0.25)})

    assert shown(update) == "iteration 1/5  reward 0.250  loss -\n"


def test_other_ranks_are_silent():
    def update(console):
        with ProgressDisplay(5, enabled=False, console=console) as progress:
            progress.update(1, {"loss": 1.0})

    assert shown(update) == ""


def test_summary():
    folder = "/a/very/long/output/folder/" + "x" * 120
    output = shown(
        print_summary,
        before={"eval_reward_mean": 0.25, "eval_exact_match": 0.5},
        after={"eval_reward_mean": 0.75, "eval_exact_match": float("nan"), "new": 1.0},
        output_dir=folder,
        next_steps=[("sample from it", "vllm serve [x]/hf")],
        seconds=3725.0,
    )
    rows = {line.split()[1]: line.split()[3::2] for line in output.splitlines() if line.startswith("│")}
    assert rows["eval_reward_mean"] == ["0.250", "0.750", "+0.500"]
    assert rows["eval_exact_match"][:2] == ["0.500", "-"]
    assert f"output: {folder}\n" in output
    assert "sample from it: vllm serve [x]/hf\n" in output
    assert "took 1 h 2 min" in output


def test_summary_without_evaluations():
    assert shown(print_summary, before={}, after={}, output_dir="out") == "output: out\n"
