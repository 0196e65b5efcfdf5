"""Kimi's length reward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_megatron.objective import length_reward


def test_worked_numbers():
    lengths, correct = torch.tensor([100, 200, 300, 400]), torch.tensor([1, 0, 1, 0])
    reward = length_reward(lengths, correct, torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(reward, torch.tensor([0.5, 0, -1 / 6, -0.5]))


def test_groups_are_separate_and_equal_lengths_get_zero():
    lengths, correct = torch.tensor([10, 5, 30, 5, 20]), torch.tensor([True] * 5)
    ids = torch.tensor([9, -4, 9, -4, 9])
    assert length_reward(lengths, correct, ids).tolist() == [0.5, 0, -0.5, 0, 0]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50), st.booleans()), min_size=1, max_size=12),
    seed=st.integers(0, 1000),
)
def test_equals_the_loop_in_any_order(rows, seed):
    expected = []
    for group, length, right in rows:
        group_lengths = [r[1] for r in rows if r[0] == group]
        shortest, longest = min(group_lengths), max(group_lengths)
        reward = 0.5 - (length - shortest) / (longest - shortest) if longest > shortest else 0.0
        expected.append(reward if right else min(0.0, reward))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    ids, lengths, correct = (torch.tensor(column)[order] for column in zip(*rows, strict=True))
    torch.testing.assert_close(
        length_reward(lengths.double(), correct, ids), torch.tensor(expected, dtype=torch.float64)[order]
    )


def test_raises():
    ids = torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match="correct: shape"):
        length_reward(torch.ones(2), torch.ones(2, 1), ids)
    with pytest.raises(ValueError, match="correct: holds values other"):
        length_reward(torch.ones(2), torch.full((2,), 0.3), ids)
    with pytest.raises(ValueError, match="group_ids: missing"):
        length_reward(torch.ones(2), torch.ones(2), None)
    with pytest.raises(ValueError, match="group_ids: shape"):
        length_reward(torch.ones(2), torch.ones(2), ids[:1])
    with pytest.raises(ValueError, match=r"lengths: expected shape \[B\]"):
        length_reward(torch.ones(2, 1), torch.ones(2), ids)
