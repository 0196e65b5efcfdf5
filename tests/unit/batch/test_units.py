"""Single responses, best and worst pairs, human and sampled pairs, whole groups; and mini-batches of them."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from math import ceil, exp

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_megatron.batch.targets import build_targets
from sppo_megatron.batch.training_batch import build_units, cut_minibatches, steps_per_iteration, winner_preferences
from sppo_megatron.objective.base import Units
from sppo_megatron.objective.sppo import Sppo
from tests.unit.batch.test_build import make_groups

FAST = settings(max_examples=60, deadline=None)


def units_of(kind: Units, groups, objective=None):
    targets = build_targets(groups, objective or Sppo())
    units = build_units(kind, groups, targets)
    return units, (winner_preferences(units, groups, targets) if kind is Units.BEST_WORST else None)


def test_a_unit_per_response_for_the_regression_family():
    units, _ = units_of(Units.SINGLE, make_groups())
    assert units.tolist() == [[i] for i in range(9)]


def test_pairs_are_best_and_worst_and_need_a_spread():
    units, preferences = units_of(Units.BEST_WORST, make_groups())
    assert units.tolist() == [[1, 2], [6, 7]]
    for (winner, _), gap in zip(units, (1.0, 0.75), strict=True):
        assert preferences[winner] == pytest.approx(1 / (1 + exp(-gap)), rel=1e-6)
    assert all(preferences[i] == 0.5 for i in range(9) if i not in (1, 6))


def test_pairs_go_by_win_rate_if_there_are_win_rates():
    groups = make_groups([[0.0, 1.0], [0.0, 1.0, 0.5]])
    groups[1] = replace(groups[1], preference=np.array([[0.5, 0.9, 0.8], [0.1, 0.5, 0.3], [0.2, 0.7, 0.5]]))
    units, preferences = units_of(Units.BEST_WORST, groups, Sppo(reward="win_rate"))
    assert units.tolist() == [[1, 0], [2, 3]]
    assert preferences[2] == pytest.approx(0.9)
    assert preferences[1] == pytest.approx(1 / (1 + exp(-1.0)))


def test_no_group_with_a_spread_gives_no_pair():
    units, _ = units_of(Units.BEST_WORST, make_groups([[0.5, 0.5], [1.0]]))
    assert units.shape == (0, 2)


def test_spin_pairs_every_response_with_the_human_one():
    units, _ = units_of(Units.HUMAN_VS_SAMPLE, make_groups([[0.0, 1.0], [0.5], [1.0, 1.0, 1.0]]))
    assert units.tolist() == [[6, 0], [6, 1], [7, 2], [8, 3], [8, 4], [8, 5]]


def test_whole_groups_may_differ_in_size():
    units, _ = units_of(Units.GROUP, make_groups([[0.0, 1.0], [0.5], [1.0, 1.0, 1.0]]))
    assert units.tolist() == [[0, 1, -1], [2, -1, -1], [3, 4, 5]]


@pytest.mark.parametrize(
    ("kind", "sequences"), [(Units.SINGLE, 5), (Units.BEST_WORST, 2), (Units.HUMAN_VS_SAMPLE, 10), (Units.GROUP, 5)]
)
def test_sequences_of_a_group(kind, sequences):
    assert kind.sequences_of_group(5) == sequences


# ------------------------------------------------------------------------------------------------ mini-batches


@FAST
@given(
    count=st.integers(1, 13),
    unit_size=st.sampled_from([1, 2]),
    minibatch_units=st.one_of(st.none(), st.integers(1, 15)),
    epochs=st.integers(1, 3),
    shuffle=st.booleans(),
)
def test_minibatches_cover_each_unit_once_an_epoch(count, unit_size, minibatch_units, epochs, shuffle):
    units = np.arange(count * unit_size).reshape(count, unit_size)
    size = None if minibatch_units is None else minibatch_units * unit_size
    batches = cut_minibatches(units, size, epochs, shuffle=shuffle, seed=3, iteration=5)
    assert len(batches) == steps_per_iteration(count * unit_size, size, epochs)
    per_epoch = len(batches) // epochs
    assert per_epoch == (1 if minibatch_units is None else ceil(count / minibatch_units))
    for epoch in range(epochs):
        own = batches[epoch * per_epoch : (epoch + 1) * per_epoch]
        placed = [tuple(unit) for batch in own for unit in batch.tolist()]
        assert Counter(placed) == Counter(map(tuple, units.tolist()))
        assert all(len(batch) == (minibatch_units or count) for batch in own[:-1])
        if not shuffle:
            assert placed == list(map(tuple, units.tolist()))


def order(units, **changes):
    arguments = {"shuffle": True, "seed": 1, "iteration": 2, **changes}
    return [int(place) for batch in cut_minibatches(units, 4, 2, **arguments) for place in batch[:, 0]]


def test_minibatches_are_a_pure_function_of_seed_iteration_and_epoch():
    units = np.arange(20)[:, None]
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
    assert cut_minibatches(np.zeros((0, 1), np.int64), 4, 2, shuffle=True, seed=0, iteration=0) == ()
