"""Single responses, best and worst pairs, human and sampled pairs."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest

from sppo_megatron.batch.pairs import build_units
from sppo_megatron.config import ObjectiveConfig
from tests.unit.batch.test_samples import make_groups, make_samples


def test_a_unit_per_response_for_the_regression_family():
    groups = make_groups()
    samples, targets = make_samples(groups, ObjectiveConfig())
    assert build_units(samples, groups, targets, ObjectiveConfig()) == [(sample,) for sample in samples]


def test_pairs_are_best_and_worst_and_need_a_spread():
    groups = make_groups()
    samples, targets = make_samples(groups, ObjectiveConfig())
    units = build_units(samples, groups, targets, ObjectiveConfig(pairwise="dpo"))
    assert [tuple(sample.index for sample in unit) for unit in units] == [(1, 2), (6, 7)]
    for unit, gap in zip(units, (1.0, 0.75), strict=True):
        assert unit[0].preference == pytest.approx(1 / (1 + exp(-gap)), rel=1e-6)
    assert all(s.preference == 0.5 for s in samples if s.index not in (1, 6))


def test_pairs_go_by_win_rate_where_there_are_win_rates():
    groups = make_groups([[0.0, 1.0], [0.0, 1.0, 0.5]])
    groups[1].preference = np.array([[0.5, 0.9, 0.8], [0.1, 0.5, 0.3], [0.2, 0.7, 0.5]])
    samples, targets = make_samples(groups, ObjectiveConfig(reward="win_rate"))
    units = build_units(samples, groups, targets, ObjectiveConfig(pairwise="dpo"))
    assert [tuple(sample.index for sample in unit) for unit in units] == [(1, 0), (2, 3)]
    assert units[1][0].preference == pytest.approx(0.9)
    assert units[0][0].preference == pytest.approx(1 / (1 + exp(-1.0)))


def test_spin_pairs_every_response_with_the_human_one():
    spin = ObjectiveConfig(pairwise="spin", beta=0.1)
    groups = make_groups([[0.0, 1.0], [0.5], [1.0, 1.0, 1.0]])
    for group in groups:
        group.prompt.human_token_ids = np.array([1, 2], np.int32)
    samples, targets = make_samples(groups, spin)
    units = build_units(samples, groups, targets, spin)
    assert [tuple(sample.index for sample in unit) for unit in units] == [
        (6, 0),
        (6, 1),
        (7, 2),
        (8, 3),
        (8, 4),
        (8, 5),
    ]
    assert all(winner.is_human and not loser.is_human for winner, loser in units)


@pytest.mark.parametrize(("kind", "sequences"), [(None, 5), ("dpo", 2), ("inpo", 2), ("spin", 10)])
def test_sequences_of_a_group(kind, sequences):
    assert ObjectiveConfig(pairwise=kind).sequences_of_group(5) == sequences
