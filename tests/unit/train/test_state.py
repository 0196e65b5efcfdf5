"""The trainer's state through files: counters, and an interrupted iteration with its frozen log π_t, bitwise."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from sppo_megatron.data.rollout_file import read_groups, write_groups
from sppo_megatron.train.state import TrainerState
from sppo_megatron.types import Group, Prompt, Response

STATE = {
    "step": 17,
    "iteration": 4,
    "minibatch": 1,
    "has_rollouts": True,
    "evaluation_before": {"eval_reward_mean": 0.1 + 0.2, "eval_exact_match": 0.0},
    "evaluation_last": {"eval_reward_mean": 0.7},
    "iteration_metrics": {"entropy": 1 / 3, "seconds_rollout": 1e-300},
}


def make_iteration(lengths: list[list[int]]) -> tuple[list[Group], np.ndarray]:
    """Log-probs with every bit in use, subnormals and a negative zero."""
    rng = np.random.default_rng(0)
    groups, log_probs = [], []
    for index, of_group in enumerate(lengths):
        group = Group(Prompt(10 + index, rng.integers(0, 99, 3).astype(np.int32), text=f"π {index}", answer="a"))
        for length in of_group:
            ids = rng.integers(0, 99, length).astype(np.int32)
            rollout = -rng.random(length).astype(np.float32)
            old = -(rng.random(length) * 10.0 ** rng.integers(-44, 2, length)).astype(np.float32)
            if length > 1:
                old[:2] = [-0.0, -1e-45]
            response = Response(ids, "text", rollout, "length", float(rng.random()), True)
            group.responses.append(response)
            log_probs.append(old)
        groups.append(group)
    groups[0] = replace(groups[0], preference=rng.random((len(lengths[0]), len(lengths[0]))))
    return groups, np.concatenate(log_probs)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def test_counters(tmp_path):
    state = TrainerState(**{**STATE, "has_rollouts": False})
    state.write(tmp_path)
    assert TrainerState.read(tmp_path) == state
    assert [path.name for path in tmp_path.iterdir()] == ["trainer_state.json"]  # between iterations: nothing else


@pytest.mark.parametrize("lengths", [[[3, 1], [5, 2, 4]], [[1]], [[2, 0, 3], [0]], [[0], [4, 4]]], ids=str)
def test_an_interrupted_iteration(tmp_path, lengths):
    groups, old_log_probs = make_iteration(lengths)
    state = TrainerState(**STATE)
    rollouts = tmp_path.parent / f"{tmp_path.name}.parquet"
    write_groups(rollouts, groups)
    state.write_iteration(tmp_path, rollouts, old_log_probs)
    state.write(tmp_path)
    write_groups(rollouts, groups[:1])  # the next run of this iteration replaces the file, and not what it links to
    read = TrainerState.read(tmp_path)
    assert read == state
    back = read.read_groups(tmp_path)

    assert same_bits(read.read_old_log_probs(tmp_path), old_log_probs)
    assert len(back) == len(groups)
    for group, other in zip(groups, back, strict=True):
        assert (other.prompt.index, other.prompt.text, other.prompt.answer) == (
            group.prompt.index,
            group.prompt.text,
            group.prompt.answer,
        )
        assert same_bits(other.prompt.token_ids, group.prompt.token_ids)
        assert (other.preference is None) == (group.preference is None)
        assert group.preference is None or same_bits(other.preference, group.preference)
        for response, read_back in zip(group.responses, other.responses, strict=True):
            assert same_bits(read_back.token_ids, response.token_ids)
            assert same_bits(read_back.rollout_log_probs, response.rollout_log_probs)
            for name in ("text", "finish_reason", "reward", "correct", "error"):
                assert getattr(read_back, name) == getattr(response, name)


def test_log_probs_can_be_changed_after_reading(tmp_path):
    groups, log_probs = make_iteration([[3, 2]])
    write_groups(tmp_path / "r.parquet", groups)
    TrainerState.write_iteration(tmp_path, tmp_path / "r.parquet", log_probs)
    old_log_probs = TrainerState(has_rollouts=True).read_old_log_probs(tmp_path)
    old_log_probs[0] = -5.0
    assert TrainerState(has_rollouts=True).read_old_log_probs(tmp_path)[0] != -5.0


def test_rollouts_take_their_place_again(tmp_path):
    """In another output folder, over what is there, and if the very same file is there."""
    groups, log_probs = make_iteration([[3, 2]])
    write_groups(tmp_path / "r.parquet", groups)
    TrainerState.write_iteration(tmp_path / "checkpoint", tmp_path / "r.parquet", log_probs)
    assert (tmp_path / "r.parquet").stat().st_nlink == 2  # linked, not written again
    write_groups(tmp_path / "other" / "r.parquet", [])
    for place in (tmp_path / "r.parquet", tmp_path / "other" / "r.parquet", tmp_path / "third" / "r.parquet"):
        TrainerState.restore_rollouts(tmp_path / "checkpoint", place)
        assert [entry.name for entry in place.parent.iterdir() if entry.is_file()] == ["r.parquet"]
        assert len(read_groups(place)) == 1


@pytest.mark.parametrize("content", [None, "{", '{"stepp": 3}', "[1]"])
def test_a_folder_that_is_no_checkpoint(tmp_path, content):
    if content is not None:
        (tmp_path / "trainer_state.json").write_text(content)
    with pytest.raises(ValueError, match=r"is no checkpoint of this trainer") as raised:
        TrainerState.read(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_a_state_of_an_older_version_gets_the_defaults(tmp_path):
    (tmp_path / "trainer_state.json").write_text(json.dumps({"step": 3, "iteration": 1}))
    assert TrainerState.read(tmp_path) == TrainerState(step=3, iteration=1)
