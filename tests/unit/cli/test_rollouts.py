"""`sppo rollouts`: what it prints is what `rollout=replay` reads."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from sppo_megatron.cli.rollouts import main
from sppo_megatron.data.rollout_file import read_groups, write_groups
from sppo_megatron.types import Group, Prompt, Response


def groups_of(iteration: int) -> list[Group]:
    ids = np.array([iteration, 7], np.int32)
    log_probs = np.array([-0.1, -1 / 3], np.float32)
    return [
        Group(Prompt(0, ids, text="a\nb ü", answer="7"), [Response(ids, rollout_log_probs=log_probs, reward=0.1 * i)])
        for i in range(2)
    ]


@pytest.fixture
def run(tmp_path):
    for iteration in (0, 1, 10):
        write_groups(tmp_path / "run" / "rollouts" / f"iteration_{iteration:06d}.jsonl", groups_of(iteration))
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("arguments", "iterations"), [([], [0, 0, 1, 1, 10, 10]), (["--iteration", "10"], [10, 10])], ids=["all", "one"]
)
def test_a_replay_reads_what_is_printed(run, tmp_path, capsys, arguments, iterations):
    assert main([str(run), *arguments]) == 0
    printed = tmp_path / "printed.jsonl"
    printed.write_text(capsys.readouterr().out)
    groups = read_groups(printed)
    assert [group.prompt.token_ids[0] for group in groups] == iterations
    for group, expected in zip(groups[-2:], groups_of(10), strict=True):
        (response,), (stored,) = group.responses, expected.responses
        assert group.prompt.text == expected.prompt.text and response.reward == stored.reward
        assert np.array_equal(response.rollout_log_probs, stored.rollout_log_probs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--iteration", "3"], "holds no rollouts of iteration 3: give the output_dir of a run"),
        ([], "holds no rollouts:"),
    ],
)
def test_nothing_to_print_is_one_line(run, tmp_path, capsys, arguments, message):
    assert main([str(run if arguments else tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("configuration error: ") and message in error and error.count("\n") == 1


def test_a_broken_line_is_named(run, capsys):
    path = run / "rollouts" / "iteration_000001.jsonl"
    path.write_text(path.read_text()[:-30])
    assert main([str(run)]) == 2
    assert "iteration_000001.jsonl, line 2: not JSON" in capsys.readouterr().err


def test_a_reader_that_has_enough_is_no_error(run):
    path = run / "rollouts" / "iteration_000000.jsonl"
    path.write_text(path.read_text() * 3000)  # more than a pipe holds
    command = [sys.executable, "-m", "sppo_megatron.cli.rollouts", str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith("{")
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
