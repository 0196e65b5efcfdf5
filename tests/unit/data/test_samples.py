"""Samples, units and mini-batches from scored groups."""

from __future__ import annotations

import random
from collections import Counter
from math import ceil, exp

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_megatron.config import ObjectiveConfig
from sppo_megatron.data.samples import build_samples, build_units, minibatches, set_old_log_probs, steps_per_iteration
from sppo_megatron.reward.targets import build_targets
from sppo_megatron.types import Group, Prompt, Response

FAST = settings(max_examples=60, deadline=None)
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
                )
            )
        groups.append(group)
    return groups


def make_samples(groups, objective):
    targets = build_targets(groups, objective)
    return build_samples(groups, targets, objective, MAX_LENGTH), targets


def responses_of(groups):
    return [(group, response) for group in groups for response in group.responses]


# ------------------------------------------------------------------------------------------------ samples


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
def test_one_sample_per_response_with_its_weight(fields, weight):
    groups = make_groups()
    samples, _ = make_samples(groups, ObjectiveConfig(eta=3.0, baseline="mean", **fields))
    assert len(samples) == len(responses_of(groups))
    for i, (sample, (group, response)) in enumerate(zip(samples, responses_of(groups), strict=True)):
        mean = np.mean([other.reward for other in group.responses])
        assert sample.index == i
        assert sample.prompt_token_ids is group.prompt.token_ids
        assert sample.response_token_ids is response.token_ids
        assert sample.rollout_log_probs is response.rollout_log_probs
        assert sample.target == pytest.approx(3.0 * (response.reward - mean), abs=1e-6)
        assert sample.weight == weight(len(response.token_ids))
        assert (sample.reward, sample.win_rate) == (response.reward, 0.5)
        assert sample.truncated == (response.finish_reason == "length")
        assert sample.old_log_probs is None
        assert sample.importance_weight == 1.0


def test_win_rates_come_from_the_matrix():
    groups = make_groups([[0.0, 1.0, 0.5]])
    groups[0].preference = np.array([[0.5, 0.2, 0.4], [0.8, 0.5, 0.9], [0.6, 0.1, 0.5]])
    samples, _ = make_samples(groups, ObjectiveConfig(reward="win_rate"))
    assert [sample.win_rate for sample in samples] == pytest.approx([1.1 / 3, 2.2 / 3, 1.2 / 3])
    assert [sample.reward for sample in samples] == [0.0, 1.0, 0.5]


# ------------------------------------------------------------------------------------------------ importance weights


def perturbed(groups, scale: float = 1.0) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [
        (r.rollout_log_probs + scale * rng.normal(size=len(r.token_ids))).astype(np.float32)
        for _, r in responses_of(groups)
    ]


@pytest.mark.parametrize("cap", [0.8, 2.0, 1e6])
@pytest.mark.parametrize("level", ["sequence", "token"])
def test_importance_weights(level, cap):
    groups = make_groups()
    objective = ObjectiveConfig(sequence_weight="length", importance_weight=level, importance_cap=cap)
    samples, _ = make_samples(groups, objective)
    old = perturbed(groups)
    set_old_log_probs(samples, old, objective)
    weights = []
    for sample, log_probs, (_, response) in zip(samples, old, responses_of(groups), strict=True):
        gaps = [float(a) - float(b) for a, b in zip(log_probs, response.rollout_log_probs, strict=True)]
        if level == "sequence":
            weight = min(exp(sum(gaps)), cap)
        else:
            weight = sum(min(exp(gap), cap) for gap in gaps) / len(gaps)
        assert sample.old_log_probs is log_probs
        assert sample.importance_weight == pytest.approx(weight, rel=1e-5)
        assert sample.weight == pytest.approx(weight / len(gaps), rel=1e-5)
        weights.append(weight)
    assert len(set(weights)) > 1


def test_without_importance_weights_only_the_log_probs_are_set():
    groups = make_groups(with_rollout=False)
    samples, _ = make_samples(groups, ObjectiveConfig())
    old = [np.zeros(len(r.token_ids), np.float32) for _, r in responses_of(groups)]
    set_old_log_probs(samples, old, ObjectiveConfig())
    assert all(sample.old_log_probs is log_probs for sample, log_probs in zip(samples, old, strict=True))
    assert {sample.weight for sample in samples} == {1.0}


def test_importance_weights_without_rollout_log_probs():
    groups = make_groups()
    groups[1].responses[0].rollout_log_probs = None
    objective = ObjectiveConfig(importance_weight="token")
    samples, _ = make_samples(groups, objective)
    old = [np.zeros(len(r.token_ids), np.float32) for _, r in responses_of(groups)]
    with pytest.raises(ValueError, match=r"response 4 has no rollout_log_probs.*importance_weight=token.*null"):
        set_old_log_probs(samples, old, objective)


def test_an_empty_response_has_importance_weight_one():
    groups = make_groups([[0.0, 1.0]])
    groups[0].responses[0].token_ids = np.zeros(0, np.int32)
    groups[0].responses[0].rollout_log_probs = np.zeros(0, np.float32)
    for level in ("sequence", "token"):
        objective = ObjectiveConfig(importance_weight=level)
        samples, _ = make_samples(groups, objective)
        set_old_log_probs(samples, perturbed(groups), objective)
        assert samples[0].importance_weight == 1.0


# ------------------------------------------------------------------------------------------------ units


def test_a_unit_per_response_for_the_regression_family():
    groups = make_groups()
    samples, targets = make_samples(groups, ObjectiveConfig())
    assert build_units(samples, groups, targets, pairwise=False) == [(sample,) for sample in samples]


def test_pairs_are_best_and_worst_and_need_a_spread():
    groups = make_groups()
    samples, targets = make_samples(groups, ObjectiveConfig())
    units = build_units(samples, groups, targets, pairwise=True)
    assert [tuple(sample.index for sample in unit) for unit in units] == [(1, 2), (6, 7)]
    for unit, gap in zip(units, (1.0, 0.75), strict=True):
        assert unit[0].preference == pytest.approx(1 / (1 + exp(-gap)), rel=1e-6)
    assert all(s.preference == 0.5 for s in samples if s.index not in (1, 6))


def test_pairs_go_by_win_rate_where_there_are_win_rates():
    groups = make_groups([[0.0, 1.0], [0.0, 1.0, 0.5]])
    groups[1].preference = np.array([[0.5, 0.9, 0.8], [0.1, 0.5, 0.3], [0.2, 0.7, 0.5]])
    samples, targets = make_samples(groups, ObjectiveConfig(reward="win_rate"))
    units = build_units(samples, groups, targets, pairwise=True)
    assert [tuple(sample.index for sample in unit) for unit in units] == [(1, 0), (2, 3)]
    assert units[1][0].preference == pytest.approx(0.9)
    assert units[0][0].preference == pytest.approx(1 / (1 + exp(-1.0)))


# ------------------------------------------------------------------------------------------------ mini-batches


def units_of(count: int, size: int):
    groups = make_groups([[0.0] * (count * size)])
    samples, _ = make_samples(groups, ObjectiveConfig())
    return [tuple(samples[i : i + size]) for i in range(0, count * size, size)]


@FAST
@given(
    count=st.integers(1, 13),
    unit_size=st.sampled_from([1, 2]),
    minibatch_units=st.one_of(st.none(), st.integers(1, 15)),
    epochs=st.integers(1, 3),
    shuffle=st.booleans(),
)
def test_minibatches_cover_each_unit_once_an_epoch(count, unit_size, minibatch_units, epochs, shuffle):
    units = units_of(count, unit_size)
    size = None if minibatch_units is None else minibatch_units * unit_size
    batches = minibatches(units, size, epochs, shuffle=shuffle, seed=3, iteration=5)
    assert len(batches) == steps_per_iteration(count * unit_size, size, epochs)
    per_epoch = len(batches) // epochs
    assert per_epoch == (1 if minibatch_units is None else ceil(count / minibatch_units))
    for epoch in range(epochs):
        own = batches[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert Counter(id(unit) for batch in own for unit in batch) == Counter(map(id, units))
        assert all(len(batch) == (minibatch_units or count) for batch in own[:-1])
        if not shuffle:
            assert [unit for batch in own for unit in batch] == units


def order(units, **changes):
    arguments = {"shuffle": True, "seed": 1, "iteration": 2, **changes}
    return [unit[0].index for batch in minibatches(units, 4, 2, **arguments) for unit in batch]


def test_minibatches_are_a_pure_function_of_seed_iteration_and_epoch():
    units = units_of(20, 1)
    base = order(units)
    torch.rand(3)  # no global generator is read
    random.random()
    assert order(units) == base
    assert base[:20] != base[20:]  # the epochs differ
    assert base[:20] != sorted(base[:20])
    others = [order(units, seed=2), order(units, iteration=3), order(units, seed=2, iteration=1)]
    assert all(other != base for other in others)
    assert order(units, shuffle=False) == [*range(20)] * 2


def test_no_units_no_minibatches():
    assert minibatches([], 4, 2, shuffle=True, seed=0, iteration=0) == []
