"""Targets by hand-worked numbers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sppo_megatron.batch.targets import build_targets
from sppo_megatron.objective.registry import build_objective
from sppo_megatron.types import Group, Prompt, Response

PREFERENCE = np.array([[0.5, 0.8, 0.9], [0.2, 0.5, 0.6], [0.1, 0.4, 0.5]])


def make_group(rewards, index=7, lengths=None, correct=None, preference=None):
    lengths = lengths or [2] * len(rewards)
    correct = correct or [None] * len(rewards)
    responses = [
        Response(np.zeros(length, dtype=np.int32), reward=reward, correct=right)
        for reward, length, right in zip(rewards, lengths, correct, strict=True)
    ]
    return Group(Prompt(index, np.array([1], dtype=np.int32)), responses, preference)


def same(tensor, values):
    assert tensor.dtype == torch.float64
    torch.testing.assert_close(tensor, torch.tensor(values, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def objective_of(**keys):
    return build_objective(keys)


def test_reward_minus_one_half_times_eta():
    targets = build_targets([make_group([1, 0]), make_group([0.25])], objective_of(eta=2.0))
    same(targets.target, [1.0, -1.0, -0.5])
    same(targets.rewards, [1.0, 0.0, 0.25])
    assert targets.group_ids.tolist() == [0, 0, 1]
    assert targets.lengths.tolist() == [2, 2, 2]
    assert targets.win_rates is None
    assert targets.correct is None


def test_exact_before_it_is_rounded_once():
    """η of 10,000 on rewards that are no float32 numbers: the float32 nearest to the exact target."""
    rewards = [0.1, 0.2, 0.7]
    targets = build_targets([make_group(rewards)], objective_of(eta=1e4, baseline="mean"))
    exact = [1e4 * (reward - math.fsum(rewards) / 3) for reward in rewards]
    assert targets.target.float().tolist() == np.array(exact, np.float32).tolist()


def test_correct_only_where_every_response_says():
    targets = build_targets([make_group([1, 0], correct=[True, None])], objective_of())
    assert targets.correct is None


def test_baselines_are_per_group_even_of_one_prompt_drawn_twice():
    groups = [make_group([1, 0], index=7), make_group([4, 2, 0], index=7)]
    targets = build_targets(groups, objective_of(eta=1.0, baseline="mean"))
    same(targets.target, [0.5, -0.5, 2.0, 0.0, -2.0])


def test_log_partition_takes_tau_from_eta_and_from_tau():
    expected = [1 - 0.5 * math.log((math.exp(2) + 1) / 2), -0.5 * math.log((math.exp(2) + 1) / 2)]
    for step in ({"eta": 2.0}, {"eta": None, "tau": 0.5}):
        targets = build_targets([make_group([1, 0])], objective_of(baseline="log_partition", **step))
        same(targets.target, [2 * value for value in expected])


def test_win_rates_of_a_judge():
    targets = build_targets([make_group([None] * 3, preference=PREFERENCE)], objective_of(eta=10.0, reward="win_rate"))
    same(targets.win_rates, [0.733333333, 0.433333333, 0.333333333])
    same(targets.rewards, [0.733333333, 0.433333333, 0.333333333])
    same(targets.target, [2.33333333, -0.66666667, -1.66666667])


def test_win_rates_with_groups_of_different_size_and_scores_instead_of_a_judge():
    p = 1 / (1 + math.exp(-2))
    groups = [make_group([3.0, 1.0]), make_group([9.0, 9.0, 9.0], preference=PREFERENCE)]
    objective = objective_of(reward="win_rate", win_rate_estimator="leave_one_out")
    targets = build_targets(groups, objective)
    same(targets.win_rates, [p, 1 - p, 0.85, 0.4, 0.25])
    same(targets.rewards, [3.0, 1.0, 9.0, 9.0, 9.0])
    same(targets.target, [p - 0.5, 0.5 - p, 0.35, -0.1, -0.25])


def test_length_reward_and_clip():
    group = make_group([1, 0, 1, 0], lengths=[100, 200, 300, 400], correct=[True, False, True, False])
    objective = objective_of(eta=4.0, length_reward_weight=0.5, target_clip=1.5)
    targets = build_targets([group], objective)
    values = [1.25, 0.0, 1 - 0.5 * 0.1666667, -0.25]
    same(targets.values, values)
    same(targets.rewards, [1.0, 0.0, 1.0, 0.0])
    same(targets.target, [1.5, -1.5, 1.5, -1.5])
    same(build_targets([group], objective_of(eta=1.0, length_reward_weight=0.5)).target, [v - 0.5 for v in values])
    assert targets.correct.tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("group", "objective", "message"),
    [
        (make_group([1.0, None]), objective_of(), r"group 1 \(prompt 7\): response 1 has no reward"),
        (make_group([]), objective_of(), r"group 1 \(prompt 7\) has no responses"),
        (make_group([]), objective_of(reward="win_rate"), r"group 1 \(prompt 7\) has no responses"),
        (
            make_group([1.0, None]),
            objective_of(reward="win_rate"),
            r"group 1 \(prompt 7\): .*needs a preference matrix",
        ),
        (
            make_group([1.0, 2.0], preference=PREFERENCE),
            objective_of(reward="win_rate"),
            r"group 1 \(prompt 7\): preference is \[3, 3\] for 2 responses",
        ),
        (
            make_group([1.0, 2.0], preference=np.array([[0.5, 0.9], [0.9, 0.5]])),
            objective_of(reward="win_rate"),
            r"group 1 \(prompt 7\): preference: .*P \+ P\^T",
        ),
        (make_group([1.0, 2.0]), objective_of(length_reward_weight=0.1), r"return \(reward, correct\)"),
    ],
)
def test_errors_name_the_group(group, objective, message):
    with pytest.raises(ValueError, match=message):
        build_targets([make_group([1.0, 0.0], index=3), group], objective)


@pytest.mark.parametrize(
    ("keys", "message"),
    [({"reward": "rewards"}, "use one of reward, win_rate"), ({"eta": 1.0, "tau": 1.0}, "exactly one")],
)
def test_an_objective_that_cannot_be(keys, message):
    with pytest.raises(ValueError, match=message):
        objective_of(**keys)


def test_masked_out_tokens_do_not_count_as_length():
    group = make_group([1, 1], lengths=[6, 4], correct=[True, True])
    group.responses[0] = replace(group.responses[0], loss_mask=np.array([1, 1, 0, 0, 0, 0], np.bool_))
    targets = build_targets([group], objective_of(length_reward_weight=1.0))
    assert targets.lengths.tolist() == [2, 4]
    same(targets.values, [1.5, 0.5])
