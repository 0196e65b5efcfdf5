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

from sppo_megatron.batch.samples import (
    build_samples,
    minibatches,
    set_old_log_probs,
    set_ref_log_ratios,
    steps_per_iteration,
)
from sppo_megatron.batch.targets import build_targets
from sppo_megatron.config import ObjectiveConfig
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
                    policy_version=10 + index,
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
        assert sample.policy_version == response.policy_version == 10 + group.prompt.index
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


# ------------------------------------------------------------------------------------------------ SPIN and INPO


def with_human_responses(groups, lengths=(4, 0, 2)):
    for group, length in zip(groups, lengths, strict=True):
        group.prompt.human_token_ids = np.arange(length, dtype=np.int32)
    return groups


def test_human_responses_come_after_the_sampled_ones_for_spin():
    groups = with_human_responses(make_groups())
    samples, _ = make_samples(groups, ObjectiveConfig(pairwise="spin"))
    sampled, human = samples[:-3], samples[-3:]
    assert [sample.index for sample in samples] == list(range(len(samples)))
    assert not any(sample.is_human for sample in sampled) and len(sampled) == len(responses_of(groups))
    for sample, group in zip(human, groups, strict=True):
        assert sample.is_human and sample.response_token_ids is group.prompt.human_token_ids
        assert sample.prompt_token_ids is group.prompt.token_ids
        assert (sample.target, sample.weight, sample.rollout_log_probs) == (0.0, 1.0, None)
    assert not any(sample.is_human for sample in make_samples(groups, ObjectiveConfig(pairwise="dpo"))[0])


def test_spin_without_a_human_response():
    groups = with_human_responses(make_groups())
    groups[1].prompt.human_token_ids = None
    with pytest.raises(ValueError, match=r"group 1 \(prompt 1\) has no human response.*data.response_key"):
        make_samples(groups, ObjectiveConfig(pairwise="spin"))


def test_importance_weights_leave_human_responses_alone():
    groups = with_human_responses(make_groups())
    objective = ObjectiveConfig(pairwise="spin", importance_weight="sequence")
    samples, _ = make_samples(groups, objective)
    set_old_log_probs(samples, perturbed(groups) + [np.zeros(n, np.float32) for n in (4, 0, 2)], objective)
    assert [sample.weight for sample in samples[-3:]] == [1.0] * 3
    assert any(sample.weight != 1.0 for sample in samples[:-3])


def test_ref_log_ratios_are_sums_over_the_response():
    groups = with_human_responses(make_groups())
    samples, _ = make_samples(groups, ObjectiveConfig(pairwise="spin"))
    lengths = [len(sample.response_token_ids) for sample in samples]
    old = [np.full(n, -1.0, np.float32) for n in lengths]
    set_old_log_probs(samples, old, ObjectiveConfig())
    metrics = set_ref_log_ratios(samples, [np.full(n, -1.25, np.float32) for n in lengths])
    assert [sample.ref_log_ratio for sample in samples] == [n / 4 for n in lengths]
    assert metrics == {"kl_ref": pytest.approx(np.mean(lengths[:-3]) / 4)}
    samples[0].response_token_ids = samples[0].response_token_ids[:0]
    samples[0].old_log_probs = np.zeros(0, np.float32)
    log_probs = [np.full(len(sample.response_token_ids), -1.25, np.float32) for sample in samples]
    assert set_ref_log_ratios(samples, log_probs) == {"kl_ref": pytest.approx(np.mean(lengths[1:-3]) / 4)}
    assert set_ref_log_ratios(samples[:1], log_probs[:1]) == {}  # nothing but an empty response


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
