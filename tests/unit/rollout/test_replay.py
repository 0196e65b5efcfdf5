"""Replays from real files and folders."""

import logging

import numpy as np
import pytest

from sppo_megatron.data.rollout_file import write_groups
from sppo_megatron.errors import ConfigError
from sppo_megatron.rollout.replay import Replay
from sppo_megatron.rollout.source import GroupSource
from sppo_megatron.types import Group, Prompt, Response


def make_groups(indices):
    """Prompt i with i % 3 + 1 responses."""
    return [
        Group(
            Prompt(i, np.array([i], dtype=np.int32)),
            [Response(np.array([k], dtype=np.int32), reward=float(k)) for k in range(i % 3 + 1)],
        )
        for i in indices
    ]


def indices(groups):
    return [group.prompt.index for group in groups]


@pytest.fixture
def file(tmp_path):
    write_groups(tmp_path / "all.jsonl", make_groups(range(7)))
    return tmp_path / "all.jsonl"


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "rollouts"
    for iteration, members in enumerate(([0, 1], [2, 3, 4], [5, 6])):
        write_groups(path / f"iteration_{iteration:06d}.jsonl", make_groups(members))
    (path / "notes.txt").write_text("not a rollout file")
    return path


def test_a_file_a_slice_per_iteration(file):
    source: GroupSource = Replay(file, groups_per_iteration=2, iterations=3)
    assert [indices(source.next(i)) for i in (2, 0, 1, 0)] == [[4, 5], [0, 1], [2, 3], [0, 1]]


def test_rewards_and_counts(file):
    engine = Replay(file, groups_per_iteration=2)
    for iteration in range(3):
        groups = engine.groups(iteration)
        assert engine.responses_of_groups(iteration) == [len(group.responses) for group in groups]
    assert [response.reward for response in engine.groups(2)[1].responses] == [0.0, 1.0, 2.0]
    with pytest.raises(IndexError, match="has 3 iterations"):
        engine.groups(3)
    with pytest.raises(IndexError):
        engine.responses_of_groups(-1)


def test_a_whole_file_serves_every_iteration(file):
    engine = Replay(file, iterations=1000)
    assert indices(engine.groups(0)) == indices(engine.groups(999)) == list(range(7))
    assert sum(engine.responses_of_groups(999)) == 13


def test_a_folder_a_file_per_iteration(folder):
    engine = Replay(folder, iterations=3)
    assert [indices(engine.groups(i)) for i in range(3)] == [[0, 1], [2, 3, 4], [5, 6]]
    assert [sum(engine.responses_of_groups(i)) for i in range(3)] == [3, 6, 4]


def test_a_folder_takes_the_first_groups_of_each_file_and_says_what_is_left_out(folder, caplog):
    with caplog.at_level(logging.WARNING):
        engine = Replay(folder, groups_per_iteration=2)
    assert [indices(engine.groups(i)) for i in range(3)] == [[0, 1], [2, 3], [5, 6]]
    assert sum(engine.responses_of_groups(1)) == 4
    assert "1 groups are beyond the first 2" in caplog.text


def test_running_past_the_end_is_said_at_construction(file, folder):
    with pytest.raises(ValueError, match=r"iterations=4, but .*all.jsonl has rollouts for 3 \(7 groups, 2 per iter"):
        Replay(file, groups_per_iteration=2, iterations=4)
    with pytest.raises(ValueError, match=r"iterations=4, but .*rollouts has rollouts for 3 \(3 files"):
        Replay(folder, iterations=4)
    with pytest.raises(ValueError, match="has 7 groups, fewer than the 8 of one iteration"):
        Replay(file, groups_per_iteration=8)
    with pytest.raises(ValueError, match=r"iteration_000000.jsonl has 2 groups, fewer than the 3"):
        Replay(folder, groups_per_iteration=3)


def test_a_torn_file_is_found_before_anything_starts(folder):
    last = folder / "iteration_000002.jsonl"
    last.write_bytes(last.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"iteration_000002.jsonl, line 2: not JSON"):
        Replay(folder)
    Replay(folder, iterations=2)  # doesn't read it


def test_nothing_there(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        Replay(tmp_path / "no.jsonl")
    with pytest.raises(ConfigError, match="without iteration_"):
        Replay(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="has no groups"):
        Replay(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="at least 1"):
        Replay(tmp_path / "empty.jsonl", groups_per_iteration=0)
