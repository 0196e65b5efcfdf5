from __future__ import annotations

import logging

import numpy as np
import pytest

from sppo_megatron.batch.gate import MismatchGate
from sppo_megatron.batch.micro_batches import Sample
from sppo_megatron.config import MismatchConfig, ObjectiveConfig
from sppo_megatron.errors import TrainingError

BOUNDS = {"mean_bound": 0.1, "share_bound": 0.25, "token_bound": 0.5, "sequence_bound": 0.9}


def samples(*differences: list[float], version: int = 4) -> list[Sample]:
    """Responses whose log π_t exceeds log π_rollout by so many nats, token by token."""
    return [
        Sample(
            index,
            np.array([1], np.int32),
            np.arange(len(d), dtype=np.int32),
            old_log_probs=np.array(d, np.float32) - 2,
            rollout_log_probs=np.full(len(d), -2, np.float32),
            policy_version=version,
        )
        for index, d in enumerate(differences)
    ]


def gate(action: str, **objective: object) -> MismatchGate:
    return MismatchGate(MismatchConfig(action=action, **BOUNDS), ObjectiveConfig(**objective))


GOOD = ([0.01, -0.02], [0.03])
BAD = ([0.3, -0.4], [0.2], [0.01])


@pytest.mark.parametrize("action", ["warn", "importance_weight", "drop", "stop"])
def test_agreement_passes(action, caplog):
    todo = samples(*GOOD)
    dropped, metrics = gate(action).check(todo, 7, version=4)
    assert dropped == set() and metrics["mismatch_exceeded"] == 0 and not caplog.records
    assert metrics["mismatch_mean"] == pytest.approx(0.02)
    assert metrics["mismatch_sequence_max"] == pytest.approx(0.03)
    assert [sample.weight for sample in todo] == [1, 1]


def test_warn(caplog):
    with caplog.at_level(logging.WARNING):
        dropped, metrics = gate("warn").check(samples(*BAD), 7, version=4)
    assert dropped == set() and metrics["mismatch_exceeded"] == 1
    [record] = caplog.records
    assert "iteration 7" in record.message and "0.228 nats per token (mean_bound 0.1)" in record.message


def test_share_of_tokens(caplog):
    """The mean is fine and a third of the tokens is not."""
    with caplog.at_level(logging.WARNING):
        _, metrics = MismatchGate(
            MismatchConfig(mean_bound=5, share_bound=0.25, token_bound=0.5), ObjectiveConfig()
        ).check(samples([0.6, 0, 0]), 0, version=4)
    assert metrics["mismatch_share_over"] == pytest.approx(1 / 3) and "33.3% of tokens" in caplog.text


def test_stop():
    with pytest.raises(TrainingError, match=r"iteration 7.*Nothing was trained.*rollout\.verify"):
        gate("stop").check(samples(*BAD), 7, version=4)


def test_drop_takes_out_responses_over_their_own_bounds():
    # mean over 0.1; mean under it, but the sum over 0.9; fine; empty
    todo = samples([0.2, -0.2], [0.095] * 10, [0.05] * 10, [])
    dropped, metrics = gate("drop").check(todo, 0, version=4)
    assert dropped == {0, 1} and metrics["mismatch_dropped"] == 2


def test_importance_weight():
    todo = samples([0.3, -0.4], [0.9, 0.3])
    gate("importance_weight", importance_cap=2.0).check(todo, 0, version=4)
    assert [sample.weight for sample in todo] == pytest.approx([np.exp(-0.1), 2.0])
    assert [sample.importance_weight for sample in todo] == pytest.approx([np.exp(-0.1), 2.0])


def test_importance_weights_that_are_there_already_are_not_squared():
    todo = samples(*BAD)
    gate("importance_weight", importance_weight="sequence").check(todo, 0, version=4)
    assert [sample.weight for sample in todo] == [1, 1, 1]


@pytest.mark.parametrize("action", ["warn", "importance_weight", "drop", "stop"])
def test_responses_of_an_older_policy_are_measured_and_left_alone(action, caplog):
    todo = samples(*BAD, version=3)
    dropped, metrics = gate(action).check(todo, 0, version=4)
    assert dropped == set() and metrics["mismatch_mean"] > 0.2 and metrics["mismatch_exceeded"] == 0
    assert [sample.weight for sample in todo] == [1, 1, 1] and not caplog.records


def test_responses_without_log_probs_are_not_looked_at():
    todo = samples(*GOOD)
    for sample in todo:
        sample.rollout_log_probs = None
    assert gate("stop").check(todo, 0) == (set(), {})
