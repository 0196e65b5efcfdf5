"""A training batch from scored groups: its columns and metrics, each against its definition."""

from __future__ import annotations

from dataclasses import replace
from math import exp

import numpy as np
import pytest

from sppo_megatron.batch.build import build_batch, with_old_log_probs
from sppo_megatron.batch.sequences import sequences_of
from sppo_megatron.config import MismatchConfig, TrainConfig
from sppo_megatron.errors import TrainingError
from sppo_megatron.objective.base import Units
from sppo_megatron.objective.pairs import Pairs, Spin
from sppo_megatron.objective.registry import build_objective
from sppo_megatron.objective.sppo import Sppo
from sppo_megatron.types import Group, Prompt, Response

MAX_LENGTH = 16
REWARDS = [[0.25, 1.0, 0.0, 0.5], [0.5, 0.5], [1.0, 0.25, 1.0]]


def make_groups(rewards=REWARDS, seed: int = 0, with_rollout: bool = True) -> list[Group]:
    rng = np.random.default_rng(seed)
    groups = []
    for index, values in enumerate(rewards):
        group = Group(Prompt(index, rng.integers(0, 50, 3 + index).astype(np.int32)))
        for reward in values:
            length = int(rng.integers(1, 9))
            group.responses.append(
                Response(
                    rng.integers(0, 50, length).astype(np.int32),
                    rollout_log_probs=-rng.random(length).astype(np.float32) if with_rollout else None,
                    finish_reason="length" if rng.random() < 0.5 else "stop",
                    reward=reward,
                    policy_version=10 + index,
                )
            )
        groups.append(group)
    return groups


def responses_of(groups):
    return [(group, response) for group in groups for response in group.responses]


def make_batch(groups, objective, old=None, **options):
    """old: log π_t of each sequence, zeros by default."""
    sequences = sequences_of(groups, objective.units)
    flat = np.zeros(sequences.total, np.float32) if old is None else np.concatenate(old).astype(np.float32)
    arguments = {"train": TrainConfig(shuffle=False), "mismatch": MismatchConfig(), "iteration": 3, "version": 99}
    return build_batch(groups, sequences, flat, objective, **(arguments | options))


# ------------------------------------------------------------------------------------------------ columns


@pytest.mark.parametrize(
    ("fields", "weight"),
    [
        ({}, lambda length: 1.0),
        ({"loss_agg_mode": "token-mean"}, lambda length: 1.0),
        ({"loss_agg_mode": "seq-mean-token-mean"}, lambda length: 1 / length),
        ({"sequence_weight": "none"}, lambda length: 1.0),
        ({"sequence_weight": "length"}, lambda length: 1 / length),
        ({"sequence_weight": "max_length"}, lambda length: 1 / MAX_LENGTH),
    ],
)
def test_one_row_per_response_with_its_weight(fields, weight):
    groups = make_groups()
    keys = {"eta": 3.0, "baseline": "mean", **fields}
    batch = make_batch(groups, build_objective(keys, max_response_length=MAX_LENGTH))
    sequences, columns = batch.sequences, batch.columns
    assert len(sequences) == len(responses_of(groups))
    for i, (group, response) in enumerate(responses_of(groups)):
        mean = np.mean([other.reward for other in group.responses])
        prompt = sequences.prompt_offsets[sequences.prompt_of[i] :][:2]
        tokens = slice(*sequences.offsets[i : i + 2])
        assert sequences.prompt_token_ids[slice(*prompt)].tolist() == group.prompt.token_ids.tolist()
        assert sequences.token_ids[tokens].tolist() == response.token_ids.tolist()
        assert batch.rollout_log_probs[tokens].tolist() == response.rollout_log_probs.tolist()
        assert sequences.lengths[i] == response.length
        assert columns["target"][i] == pytest.approx(3.0 * (response.reward - mean), abs=1e-6)
        assert columns["weight"][i] == np.float32(weight(len(response.token_ids)))
        assert (columns["reward"][i], columns["win_rate"][i]) == (response.reward, 0.5)
        assert columns["truncated"][i] == (response.finish_reason == "length")
        assert columns["importance_weight"][i] == 1.0
    assert {column.dtype for column in columns.values()} == {np.dtype(np.float32)}
    assert batch.minibatches[0].tolist() == [[i] for i in range(9)]


def test_win_rates_come_from_the_matrix():
    groups = make_groups([[0.0, 1.0, 0.5]])
    groups[0] = replace(groups[0], preference=np.array([[0.5, 0.2, 0.4], [0.8, 0.5, 0.9], [0.6, 0.1, 0.5]]))
    batch = make_batch(groups, Sppo(reward="win_rate"))
    assert batch.columns["win_rate"] == pytest.approx([1.1 / 3, 2.2 / 3, 1.2 / 3])
    assert batch.columns["reward"].tolist() == [0.0, 1.0, 0.5]


def test_targets_are_rounded_once():
    """η of 10,000 on rewards that are no float32 numbers."""
    batch = make_batch(make_groups([[0.1, 0.2, 0.7]]), Sppo(eta=1e4, baseline="mean"))
    exact = [1e4 * (reward - 1 / 3) for reward in (0.1, 0.2, 0.7)]
    assert batch.columns["target"].tolist() == np.array(exact, np.float32).tolist()


# ------------------------------------------------------------------------------------------------ importance weights


def perturbed(groups, scale: float = 1.0) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [
        (r.rollout_log_probs + scale * rng.normal(size=len(r.token_ids))).astype(np.float32)
        for _, r in responses_of(groups)
    ]


def weight_of(gaps: list[float], level: str, cap: float) -> float:
    if level == "sequence":
        return min(exp(sum(gaps)), cap)
    return sum(min(exp(gap), cap) for gap in gaps) / len(gaps)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cap", [0.8, 2.0, 1e6])
@pytest.mark.parametrize("level", ["sequence", "token"])
def test_importance_weights(level, cap, masked):
    groups = make_groups()
    masks = [np.arange(len(r.token_ids)) % 3 != 1 for _, r in responses_of(groups)]
    if masked:
        remaining = iter(masks)
        groups = changed(groups, lambda response: replace(response, loss_mask=next(remaining)))
    old = perturbed(groups)
    objective = Sppo(sequence_weight="length", importance_weight=level, importance_cap=cap)
    batch = make_batch(groups, objective, old)
    weights = []
    for i, (log_probs, (_, response), mask) in enumerate(zip(old, responses_of(groups), masks, strict=True)):
        counts = mask if masked else np.ones_like(mask)
        gaps = (log_probs.astype(np.float64) - response.rollout_log_probs)[counts].tolist()
        weights.append(weight_of(gaps, level, cap))
        assert batch.columns["importance_weight"][i] == pytest.approx(weights[-1], rel=1e-5)
        assert batch.columns["weight"][i] == pytest.approx(weights[-1] / len(gaps), rel=1e-5)
        assert batch.columns["rollout_log_ratio"][i] == pytest.approx(sum(gaps), rel=1e-5)
    assert len(set(weights)) > 1


def test_without_importance_weights_no_rollout_log_probs_are_needed():
    batch = make_batch(make_groups(with_rollout=False), Sppo())
    assert set(batch.columns["weight"].tolist()) == {1.0} and not batch.has_rollout.any()
    assert set(batch.columns["rollout_log_ratio"].tolist()) == {0.0}


def test_importance_weights_without_rollout_log_probs():
    groups = make_groups()
    groups[1].responses[0] = replace(groups[1].responses[0], rollout_log_probs=None)
    with pytest.raises(ValueError, match=r"response 4 has no rollout_log_probs.*importance_weight=token.*null"):
        make_batch(groups, Sppo(importance_weight="token"))


def test_an_empty_response_has_importance_weight_one():
    groups = make_groups([[0.0, 1.0]])
    groups[0].responses[0] = emptied(groups[0].responses[0])
    for level in ("sequence", "token"):
        batch = make_batch(groups, Sppo(importance_weight=level), perturbed(groups))
        assert batch.columns["importance_weight"][0] == 1.0


# ------------------------------------------------------------------------------------------------ the gate's verdict

TIGHT = {"mean_bound": 0.1, "share_bound": 0.25, "token_bound": 0.5, "sequence_bound": 0.9}


def far_from_the_engine(groups, gaps):
    return [r.rollout_log_probs + np.float32(gap) for (_, r), gap in zip(responses_of(groups), gaps, strict=True)]


def test_the_gate_weighs_what_it_compared():
    groups = make_groups([[0.0, 1.0, 0.5]])
    groups[0].responses[2] = replace(groups[0].responses[2], policy_version=9)
    old = far_from_the_engine(groups, (0.3, -0.2, 0.7))
    mismatch = MismatchConfig(action="importance_weight", **TIGHT)
    lengths = [r.length for _, r in responses_of(groups)]
    expected = [min(2.0, exp(0.3 * lengths[0])), exp(-0.2 * lengths[1]), 1.0]
    batch = make_batch(groups, Sppo(), old, mismatch=mismatch, version=10)
    assert batch.columns["importance_weight"] == pytest.approx(expected, rel=1e-4)
    assert batch.columns["weight"] == pytest.approx(expected, rel=1e-4)
    assert (batch.metrics["mismatch_exceeded"], batch.metrics["mismatch_other_version"]) == (1.0, 1.0)


def test_the_age_of_tokens():
    groups = make_groups([[0.0, 1.0, 0.5]])
    for place, version in enumerate((9, 7, None)):
        groups[0].responses[place] = replace(groups[0].responses[place], policy_version=version)
    old = far_from_the_engine(groups, (0.0, 0.0, 0.0))
    first, second, _ = [r.length for _, r in responses_of(groups)]
    metrics = make_batch(groups, Sppo(), old, version=10).metrics
    assert metrics["token_age_mean"] == pytest.approx((1 * first + 3 * second) / (first + second))
    assert metrics["token_age_max"] == 3
    assert "token_age_mean" not in make_batch(groups, Sppo(), old, version=8).metrics, "versions of another run"


def test_importance_weights_that_are_there_already_are_not_squared():
    groups = make_groups([[0.0, 1.0]])
    old, mismatch = far_from_the_engine(groups, (0.3, -0.2)), MismatchConfig(action="importance_weight", **TIGHT)
    objective = Sppo(importance_weight="sequence")
    with_gate = make_batch(groups, objective, old, mismatch=mismatch, version=10)
    without = make_batch(groups, objective, old)
    assert with_gate.columns["weight"].tolist() == without.columns["weight"].tolist()


def test_a_unit_with_a_dropped_response_is_left_out():
    groups = make_groups([[0.0, 1.0], [0.5, 0.0], [0.2, 0.4, 0.3]])
    groups = changed(groups, lambda response: replace(response, policy_version=None))
    old = far_from_the_engine(groups, (0, 2.0, 0, 0, 0, 0, 0))
    mismatch = MismatchConfig(action="drop", **TIGHT)
    assert make_batch(groups, Sppo(), old, mismatch=mismatch).minibatches[0][:, 0].tolist() == [0, 2, 3, 4, 5, 6]
    pairs = make_batch(groups, Pairs(pairwise="dpo", beta=0.1), old, mismatch=mismatch)
    assert pairs.minibatches[0].tolist() == [[2, 3], [5, 4]]


def test_the_gate_stops():
    groups = make_groups([[0.0, 1.0]])
    old = far_from_the_engine(groups, (2.0, 2.0))
    with pytest.raises(TrainingError, match="iteration 3: the rollout engine's log-probs"):
        make_batch(groups, Sppo(), old, mismatch=MismatchConfig(action="stop"), version=10)


# ------------------------------------------------------------------------------------------------ SPIN and INPO


def changed(groups, change):
    """New groups whose responses are what `change` makes of them, in order."""
    return [replace(group, responses=[change(response) for response in group.responses]) for group in groups]


def emptied(response):
    return replace(response, token_ids=np.zeros(0, np.int32), rollout_log_probs=np.zeros(0, np.float32))


def with_human_responses(groups, lengths=(4, 0, 2)):
    return [
        replace(group, prompt=replace(group.prompt, human_token_ids=np.arange(length, dtype=np.int32)))
        for group, length in zip(groups, lengths, strict=True)
    ]


SPIN = Spin(pairwise="spin", beta=0.1)


def test_human_responses_come_after_the_sampled_ones_for_spin():
    groups = with_human_responses(make_groups())
    batch = make_batch(groups, SPIN)
    sequences, num_sampled = batch.sequences, len(responses_of(groups))
    assert len(sequences) == num_sampled + 3 and sequences.lengths[-3:].tolist() == [4, 0, 2]
    assert sequences.prompt_of[-3:].tolist() == [0, 1, 2]
    assert sequences.token_ids[-6:].tolist() == [0, 1, 2, 3, 0, 1]
    assert not batch.has_rollout[-3:].any() and batch.has_rollout[:num_sampled].all()
    assert batch.columns["target"][-3:].tolist() == [0.0] * 3
    assert batch.columns["weight"][-3:].tolist() == [1.0] * 3
    assert len(make_batch(groups, Pairs(pairwise="dpo", beta=0.1)).sequences) == num_sampled


def test_spin_without_a_human_response():
    groups = with_human_responses(make_groups())
    groups[1] = replace(groups[1], prompt=replace(groups[1].prompt, human_token_ids=None))
    with pytest.raises(ValueError, match=r"group 1 \(prompt 1\) has no human response.*data.response_key"):
        make_batch(groups, SPIN)


def test_importance_weights_leave_human_responses_alone():
    groups = with_human_responses(make_groups())
    old = perturbed(groups) + [np.zeros(n, np.float32) for n in (4, 0, 2)]
    batch = make_batch(groups, replace(SPIN, importance_weight="sequence"), old)
    assert batch.columns["weight"][-3:].tolist() == [1.0] * 3
    assert any(batch.columns["weight"][:-3] != 1.0)


@pytest.mark.parametrize("masked", [False, True])
def test_ref_log_ratios_are_sums_over_the_response(masked):
    groups = with_human_responses(make_groups())
    groups[0].responses[0] = emptied(groups[0].responses[0])
    if masked:
        mask = np.arange(groups[0].responses[1].length) < 1
        groups[0].responses[1] = replace(groups[0].responses[1], loss_mask=mask)
    sequences = sequences_of(groups, Units.HUMAN_VS_SAMPLE)
    old, ref = np.full(sequences.total, -1.0, np.float32), np.full(sequences.total, -1.25, np.float32)
    batch = make_batch(groups, SPIN, [old], ref_log_probs=ref)
    lengths = sequences.lengths
    assert (lengths[1] == 1) >= masked
    assert batch.columns["ref_log_ratio"].tolist() == [n / 4 for n in lengths]
    assert batch.metrics["kl_ref"] == pytest.approx(np.mean(lengths[1:-3]) / 4)


# ------------------------------------------------------------------------------------------------ metrics, groups


def test_metrics_of_the_whole_iteration():
    groups = make_groups()
    groups[1].responses[0] = replace(groups[1].responses[0], error="boom")
    metrics = make_batch(groups, Sppo()).metrics
    assert metrics["degenerate_group_share"] == pytest.approx(1 / 3) and metrics["reward_errors"] == 1
    assert "reward_mean" not in metrics  # each step has that of its own
    pairs = make_batch(groups, Pairs(pairwise="dpo", beta=0.1)).metrics
    assert pairs["reward_mean"] == pytest.approx(np.mean([r.reward for _, r in responses_of(groups)]))


def test_groups_get_their_log_probs_anew():
    groups = make_groups()
    sequences = sequences_of(groups)
    old = np.arange(sequences.total, dtype=np.float32)
    new = with_old_log_probs(groups, sequences, old)
    assert np.concatenate([r.old_log_probs for _, r in responses_of(new)]).tolist() == old.tolist()
    assert all(len(r.old_log_probs) == len(r.token_ids) for _, r in responses_of(new))
    assert all(r.old_log_probs is None for _, r in responses_of(groups))
