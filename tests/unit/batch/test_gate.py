from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from sppo_megatron.batch.gate import UNKNOWN, Rollouts, Verdict, check_mismatch
from sppo_megatron.batch.sequences import make_sequences
from sppo_megatron.config import MismatchConfig
from sppo_megatron.errors import TrainingError

BOUNDS = {"mean_bound": 0.1, "share_bound": 0.25, "token_bound": 0.5, "sequence_bound": 0.9}


def rollouts(*differences: list[float], versions: int | list[int] = 4, recorded: bool = True):
    """(sequences, log π_t, what the engine said): log π_t exceeds log π_rollout by so many nats, token by token."""
    count = len(differences)
    sequences = make_sequences([np.ones(1)] * count, [np.arange(len(d)) for d in differences])
    old = (np.concatenate([np.array(d, np.float64) for d in differences]) - 2).astype(np.float32)
    of_engine = Rollouts(
        np.full(len(old), -2, np.float32), np.full(count, recorded), np.broadcast_to(np.array(versions), count)
    )
    return sequences, old, of_engine


def check(todo, action: str, **bounds: float) -> Verdict:
    return check_mismatch(*todo, MismatchConfig(action=action, **(bounds or BOUNDS)), iteration=7, version=4)


GOOD = ([0.01, -0.02], [0.03])
BAD = ([0.3, -0.4], [0.2], [0.01])
ACTIONS = ["warn", "importance_weight", "drop", "stop"]


@pytest.mark.parametrize("action", ACTIONS)
def test_agreement_passes(action, caplog):
    verdict = check(rollouts(*GOOD), action)
    assert not verdict.dropped.any() and not verdict.to_weight.any()
    assert verdict.metrics["mismatch_exceeded"] == 0 and not caplog.records
    assert verdict.metrics["mismatch_mean"] == pytest.approx(0.02)
    assert verdict.metrics["mismatch_sequence_max"] == pytest.approx(0.03)
    assert verdict.metrics["mismatch_other_version"] == 0


def test_warn(caplog):
    with caplog.at_level(logging.WARNING):
        verdict = check(rollouts(*BAD), "warn")
    assert not verdict.dropped.any() and verdict.metrics["mismatch_exceeded"] == 1
    [record] = caplog.records
    assert "iteration 7" in record.message and "0.228 nats per token (mean_bound 0.1)" in record.message


def test_share_of_tokens(caplog):
    """The mean is fine and a third of the tokens is not."""
    with caplog.at_level(logging.WARNING):
        verdict = check(rollouts([0.6, 0, 0]), "warn", mean_bound=5, share_bound=0.25, token_bound=0.5)
    assert verdict.metrics["mismatch_share_over"] == pytest.approx(1 / 3) and "33.3% of tokens" in caplog.text


def test_stop():
    with pytest.raises(TrainingError, match=r"iteration 7.*Nothing was trained.*rollout\.verify"):
        check(rollouts(*BAD), "stop")


def test_drop_takes_out_responses_over_their_own_bounds():
    # mean over 0.1; mean under it, but the sum over 0.9; fine; empty
    verdict = check(rollouts([0.2, -0.2], [0.095] * 10, [0.05] * 10, []), "drop")
    assert verdict.dropped.tolist() == [True, True, False, False] and verdict.metrics["mismatch_dropped"] == 2


def test_importance_weights_are_asked_for():
    assert check(rollouts(*BAD), "importance_weight").to_weight.tolist() == [True] * 3


@pytest.mark.parametrize("action", ACTIONS)
def test_responses_of_an_older_policy_are_measured_and_left_alone(action, caplog):
    verdict = check(rollouts(*BAD, versions=3), action)
    assert not verdict.dropped.any() and not verdict.to_weight.any() and not caplog.records
    assert verdict.metrics["mismatch_mean"] > 0.2 and verdict.metrics["mismatch_exceeded"] == 0
    assert verdict.metrics["mismatch_other_version"] == 3


@pytest.mark.parametrize("unknown_or_own", [UNKNOWN, 4])
def test_one_response_of_another_policy_does_not_switch_the_gate_off(unknown_or_own):
    """It is not compared: neither does its difference count, nor is it dropped or weighted."""
    versions = [unknown_or_own, unknown_or_own, 3]
    mixed = rollouts([0.3, -0.4], [0.01], [9.0, 9.0], versions=versions)
    verdict = check(mixed, "drop")
    assert verdict.dropped.tolist() == [True, False, False]
    assert verdict.metrics["mismatch_mean"] == pytest.approx(0.71 / 3, rel=1e-4)
    assert verdict.metrics["mismatch_other_version"] == 1 and verdict.metrics["mismatch_exceeded"] == 1
    assert check(mixed, "importance_weight").to_weight.tolist() == [True, True, False]
    with pytest.raises(TrainingError, match=r"0\.237 nats per token"):
        check(mixed, "stop")


def test_masked_out_tokens_are_not_compared():
    sequences, old, of_engine = rollouts([0.01, 5.0, -0.02], [0.03])
    sequences = replace(sequences, loss_mask=np.array([True, False, True, True]))
    verdict = check((sequences, old, of_engine), "stop")
    assert verdict.metrics["mismatch_mean"] == pytest.approx(0.02, rel=1e-4)
    assert verdict.metrics["mismatch_max"] == pytest.approx(0.03, rel=1e-4)


def test_responses_without_log_probs_are_not_looked_at():
    verdict = check(rollouts(*BAD, recorded=False), "stop")
    assert verdict.metrics == {} and not verdict.dropped.any()
