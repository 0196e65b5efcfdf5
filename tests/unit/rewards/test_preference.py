"""Preference matrices by hand-worked numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sppo_megatron.batch.targets import build_targets
from sppo_megatron.data.rollout_file import read_groups, write_groups
from sppo_megatron.objective.sppo import Sppo
from sppo_megatron.objective.win_rate import check_preference
from sppo_megatron.rewards.preference import ordered_pairs, preference_matrix, with_preference
from sppo_megatron.types import Group, Prompt, Response

IDS = np.array([1], dtype=np.int32)


def make_group(k):
    return Group(Prompt(0, IDS), [Response(IDS, correct=True, error="old") for _ in range(k)])


def test_pairs_of_responses_that_differ():
    assert ordered_pairs(["a", "b", "a"]) == [(0, 1), (1, 0), (1, 2), (2, 1)]
    assert ordered_pairs([]) == ordered_pairs(["a"]) == []


def test_orders_are_averaged_and_half_a_pair_is_a_tie():
    matrix = preference_matrix(3, {(0, 1): 0.9, (1, 0): 0.3, (0, 2): 1.0})
    np.testing.assert_allclose(matrix, [[0.5, 0.8, 0.5], [0.2, 0.5, 0.5], [0.5, 0.5, 0.5]], atol=1e-15)


def test_any_answers_make_a_preference():
    """Whatever a judge says in [0, 1], the matrix is complementary in floating point, too."""
    random = np.random.default_rng(0)
    first_wins = {
        (i, j): float(random.choice([0.0, 1.0, random.random()])) for i in range(7) for j in range(7) if i != j
    }
    matrix = torch.from_numpy(preference_matrix(7, first_wins))
    check_preference(matrix, tolerance=1e-15)
    assert matrix.diagonal().tolist() == [0.5] * 7


@pytest.mark.parametrize("wrong", [1.5, -0.1, float("nan")])
def test_what_is_no_probability_is_refused(wrong):
    with pytest.raises(ValueError, match="preference"):
        with_preference(make_group(2), {(0, 1): wrong, (1, 0): wrong - 2.0}, {})


def test_rock_paper_scissors_goes_through_the_file_to_the_targets(tmp_path):
    """A cycle: no scores could say it. The fourth response loses to two by 0.75; of the third nothing is known."""
    first_wins = {}
    for winner, loser in [(0, 1), (1, 2), (2, 0)]:
        first_wins |= {(winner, loser): 1.0, (loser, winner): 0.2}  # averaged: 0.9
    for winner in (0, 1):
        first_wins |= {(winner, 3): 0.75, (3, winner): 0.25}
    group = with_preference(make_group(4), first_wins, {(2, 3): "lost", (3, 2): "lost"})
    write_groups(tmp_path / "groups.jsonl", [group])
    [group] = read_groups(tmp_path / "groups.jsonl")
    expected = [[0.5, 0.9, 0.1, 0.75], [0.1, 0.5, 0.9, 0.75], [0.9, 0.1, 0.5, 0.5], [0.25, 0.25, 0.5, 0.5]]
    np.testing.assert_allclose(group.preference, expected, atol=1e-15)
    assert [response.reward for response in group.responses] == pytest.approx([0.5625, 0.5625, 0.5, 0.375])
    assert [response.error is None for response in group.responses] == [True, True, False, False]
    assert group.responses[2].error == "no preference between responses 2 and 3: lost"
    targets = build_targets([group], Sppo(eta=8.0, reward="win_rate"))
    np.testing.assert_allclose(targets.target, [0.5, 0.5, 0.0, -1.0], atol=1e-6)
    np.testing.assert_allclose(targets.rewards, [0.5625, 0.5625, 0.5, 0.375], atol=1e-6)
    one_out = build_targets([group], Sppo(eta=6.0, reward="win_rate", win_rate_estimator="leave_one_out"))
    np.testing.assert_allclose(one_out.target, [0.5, 0.5, 0.0, -1.0], atol=1e-6)
