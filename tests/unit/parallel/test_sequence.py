"""Sequence sums and the context-parallel layout in one process."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sppo_megatron.parallel import sequence_sum, zigzag_indices


def test_sums_and_gradient():
    values = torch.tensor([0.4, 1.0, 0.2, -3.0], requires_grad=True)
    sums = sequence_sum(values, torch.tensor([0, 2, 0, 2]), 3)
    assert sums.tolist() == pytest.approx([0.6, 0.0, -2.0])
    assert sums.dtype == torch.float32
    (sums - torch.tensor([1.0, 5.0, 0.0])).square().sum().backward()
    assert values.grad.tolist() == pytest.approx([-0.8, -4.0, -0.8, -4.0])


def test_order_of_tokens_does_not_show():
    values = torch.randn(10_000)
    ids, order = torch.randint(0, 7, (10_000,)), torch.randperm(10_000)
    assert torch.equal(sequence_sum(values, ids, 7), sequence_sum(values[order], ids[order], 7))


def test_no_tokens_is_connected_to_the_graph():
    values = torch.zeros(0, requires_grad=True)
    sums = sequence_sum(values, torch.zeros(0, dtype=torch.long), 2)
    assert sums.tolist() == [0.0, 0.0]
    sums.sum().backward()
    assert values.grad.shape == (0,)


def test_gradient_has_the_dtype_of_the_values():
    values = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    sequence_sum(values, torch.zeros(3, dtype=torch.long), 1).backward()
    assert values.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("values", "ids", "message"),
    [
        (torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.long), r"must be \[n\]"),
        (torch.zeros(3), torch.zeros(2, dtype=torch.long), r"sequence_ids \[2\]"),
        (torch.zeros(2), torch.zeros(2), "integer dtype"),
        (torch.zeros(2), torch.tensor([0, 4]), r"\[0, num_sequences=4\)"),
        (torch.zeros(2), torch.tensor([-1, 3]), r"\[0, num_sequences=4\)"),
    ],
)
def test_sum_raises(values, ids, message):
    with pytest.raises(ValueError, match=message):
        sequence_sum(values, ids, 4)


def test_zigzag_by_hand():
    """Segments of 8 and 4 tokens over two ranks: chunks 0 and 3 on rank 0, chunks 1 and 2 on rank 1."""
    assert zigzag_indices([8, 4], 2, 0).tolist() == [0, 1, 6, 7, 8, 11]
    assert zigzag_indices([8, 4], 2, 1).tolist() == [2, 3, 4, 5, 9, 10]


def test_zigzag_of_one_rank_is_the_identity():
    assert zigzag_indices([3, 5], 1, 0).tolist() == list(range(8))
    assert zigzag_indices([], 2, 0).dtype == torch.long


@given(cp_size=st.integers(1, 8), chunks=st.lists(st.integers(0, 5), max_size=6))
def test_zigzag_is_a_partition_in_equal_parts(cp_size, chunks):
    lengths = [2 * cp_size * chunk for chunk in chunks]
    parts = [zigzag_indices(lengths, cp_size, rank) for rank in range(cp_size)]
    assert {len(part) for part in parts} == {sum(lengths) // cp_size}
    assert sorted(torch.cat(parts).tolist()) == list(range(sum(lengths)))


@pytest.mark.parametrize(
    ("lengths", "cp_size", "cp_rank", "message"),
    [([8, 6], 2, 0, r"lengths\[1\] is 6"), ([8], 2, 2, "cp_rank"), ([8], 2, -1, "cp_rank"), ([8], 0, 0, "cp_size")],
)
def test_zigzag_raises(lengths, cp_size, cp_rank, message):
    with pytest.raises(ValueError, match=message):
        zigzag_indices(lengths, cp_size, cp_rank)
