"""Every layout against an explicit definition of Megatron's order, and there and back again, bitwise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sppo_megatron.hf.tensor_layouts import (
    GatedMlp,
    InterleavedGatedMlp,
    QueryKeyValue,
    Replicated,
    RowParallel,
    TransposedRowParallel,
    Vocabulary,
)

FAST = settings(max_examples=40, deadline=None)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TP_SIZES = st.sampled_from([1, 2, 4])


class Source:
    """A tensor that can be read by slices alone, and counts what was read."""

    def __init__(self, tensor: torch.Tensor):
        self._tensor, self.read = tensor, 0

    def get_shape(self):
        return list(self._tensor.shape)

    def __getitem__(self, index) -> torch.Tensor:
        part = self._tensor[index]
        self.read += part.numel()
        return part


def distinct(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Random bits, so that a wrong row can't go unseen; no NaN, which compares unequal to itself."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def shards_of(layout, tensors, tp_size: int) -> list[torch.Tensor]:
    assert tuple(tuple(tensor.shape) for tensor in tensors) == layout.shapes
    assert len(layout.hf_names) == len(tensors)
    return [layout.shard([Source(tensor) for tensor in tensors], rank, tp_size) for rank in range(tp_size)]


def assert_round_trip(layout, tensors, shards) -> None:
    back = layout.unshard(shards)
    assert len(back) == len(tensors)
    for before, after in zip(tensors, back, strict=True):
        assert after.dtype == before.dtype
        assert torch.equal(after, before)


def read_by(layout, tensors, rank: int, tp_size: int) -> int:
    sources = [Source(tensor) for tensor in tensors]
    layout.shard(sources, rank, tp_size)
    return sum(source.read for source in sources)


@FAST
@given(size=st.integers(1, 9), tp_size=TP_SIZES, dtype=st.sampled_from(DTYPES))
def test_replicated(size, tp_size, dtype):
    layout = Replicated("norm", (size,))
    tensors = distinct((size,), dtype=dtype)
    shards = shards_of(layout, tensors, tp_size)
    assert all(torch.equal(shard, tensors[0]) for shard in shards)
    assert_round_trip(layout, tensors, shards)


@FAST
@given(
    vocab=st.integers(1, 30),
    hidden=st.integers(1, 5),
    multiple=st.integers(1, 12),
    tp_size=TP_SIZES,
    dtype=st.sampled_from(DTYPES),
)
def test_vocabulary(vocab, hidden, multiple, tp_size, dtype):
    """Padding may fill whole ranks: 1 token padded to 48 over 4 ranks leaves three with padding alone."""
    padded = -(-vocab // (multiple * tp_size)) * multiple * tp_size
    layout = Vocabulary("embed", (vocab, hidden), padded)
    (table,) = tensors = distinct((vocab, hidden), dtype=dtype)
    shards = shards_of(layout, tensors, tp_size)
    per_rank = padded // tp_size
    for rank, shard in enumerate(shards):
        assert shard.shape == (per_rank, hidden) and shard.dtype == dtype
        for row in range(per_rank):
            token = rank * per_rank + row
            assert torch.equal(shard[row], table[token] if token < vocab else torch.zeros(hidden, dtype=dtype))
    assert_round_trip(layout, tensors, shards)
    assert sum(read_by(layout, tensors, rank, tp_size) for rank in range(tp_size)) == table.numel()


@FAST
@given(rows=st.integers(1, 5), columns=st.integers(1, 4), tp_size=TP_SIZES, dtype=st.sampled_from(DTYPES))
def test_row_parallel(rows, columns, tp_size, dtype):
    shape = (rows, columns * tp_size)
    layout = RowParallel("down", shape)
    (weight,) = tensors = distinct(shape, dtype=dtype)
    shards = shards_of(layout, tensors, tp_size)
    for rank, shard in enumerate(shards):
        for column in range(columns):
            assert torch.equal(shard[:, column], weight[:, rank * columns + column])
    assert_round_trip(layout, tensors, shards)
    assert read_by(layout, tensors, 0, tp_size) == rows * columns


@FAST
@given(rows=st.integers(1, 4), columns=st.integers(1, 4), tp_size=TP_SIZES, dtype=st.sampled_from(DTYPES))
def test_gated_mlp(rows, columns, tp_size, dtype):
    shape = (rows * tp_size, columns)
    layout = GatedMlp("gate", "up", shape)
    gate, up = tensors = distinct(shape, shape, dtype=dtype)
    shards = shards_of(layout, tensors, tp_size)
    for rank, shard in enumerate(shards):
        expected = [source[rank * rows + row] for source in (gate, up) for row in range(rows)]
        assert torch.equal(shard, torch.stack(expected))
    assert_round_trip(layout, tensors, shards)
    assert read_by(layout, tensors, 0, tp_size) == 2 * rows * columns


@FAST
@given(
    rows=st.integers(1, 4),
    hidden=st.one_of(st.none(), st.integers(1, 4)),
    tp_size=TP_SIZES,
    dtype=st.sampled_from(DTYPES),
)
def test_interleaved_gated_mlp(rows, hidden, tp_size, dtype):
    """Weights [hidden, 2·ffn] and biases [2·ffn]."""
    shape = (*(() if hidden is None else (hidden,)), 2 * rows * tp_size)
    layout = InterleavedGatedMlp("gate_up", shape)
    (weight,) = tensors = distinct(shape, dtype=dtype)
    shards = shards_of(layout, tensors, tp_size)
    for rank, shard in enumerate(shards):
        expected = [weight[..., 2 * (rank * rows + row) + half] for half in (0, 1) for row in range(rows)]
        assert torch.equal(shard, torch.stack(expected))
    assert_round_trip(layout, tensors, shards)
    assert read_by(layout, tensors, 0, tp_size) == weight.numel() // tp_size


@FAST
@given(rows=st.integers(1, 4), columns=st.integers(1, 4), tp_size=TP_SIZES, dtype=st.sampled_from(DTYPES))
def test_transposed_row_parallel(rows, columns, tp_size, dtype):
    layout = TransposedRowParallel("down", (rows * tp_size, columns))
    (weight,) = tensors = distinct((rows * tp_size, columns), dtype=dtype)
    shards = shards_of(layout, tensors, tp_size)
    for rank, shard in enumerate(shards):
        assert torch.equal(shard, weight[rank * rows : (rank + 1) * rows].T)
    assert_round_trip(layout, tensors, shards)
    assert read_by(layout, tensors, 0, tp_size) == rows * columns


def megatron_order(heads: int, groups: int, head_dim: int) -> list[tuple[int, int]]:
    """(which of q, k, v; row of it) of every row of linear_qkv: group by group, its queries, its key, its value."""
    order = []
    for group in range(groups):
        for head in range(heads):
            if head * groups // heads == group:
                order += [(0, head * head_dim + i) for i in range(head_dim)]
        order += [(1, group * head_dim + i) for i in range(head_dim)]
        order += [(2, group * head_dim + i) for i in range(head_dim)]
    return order


@FAST
@given(
    groups=st.sampled_from([1, 2, 4, 8]),
    queries=st.integers(1, 4),
    head_dim=st.sampled_from([1, 2, 4, 6]),
    hidden=st.one_of(st.none(), st.integers(1, 4)),
    tp_size=TP_SIZES,
    dtype=st.sampled_from(DTYPES),
)
def test_query_key_value(groups, queries, head_dim, hidden, tp_size, dtype):
    heads = groups * queries
    assume(heads % tp_size == 0 and (heads + 2 * groups) * head_dim % tp_size == 0)
    layout = QueryKeyValue(("q", "k", "v"), heads, groups, head_dim, hidden)
    columns = () if hidden is None else (hidden,)
    tensors = distinct(
        (heads * head_dim, *columns), (groups * head_dim, *columns), (groups * head_dim, *columns), dtype=dtype
    )
    shards = shards_of(layout, tensors, tp_size)
    order = megatron_order(heads, groups, head_dim)
    per_rank = len(order) // tp_size
    for rank, shard in enumerate(shards):
        rows = order[rank * per_rank : (rank + 1) * per_rank]
        assert torch.equal(shard, torch.stack([tensors[which][row] for which, row in rows]))
    assert_round_trip(layout, tensors, shards)
    if groups % tp_size == 0:
        assert read_by(layout, tensors, tp_size - 1, tp_size) == shards[-1].numel()


@pytest.mark.parametrize(("groups", "tp_size"), [(1, 2), (1, 4), (2, 4)])
def test_more_ranks_than_key_value_groups(groups, tp_size):
    layout = QueryKeyValue(("q", "k", "v"), 8, groups, 4, 3)
    tensors = distinct((32, 3), (groups * 4, 3), (groups * 4, 3))
    shards = shards_of(layout, tensors, tp_size)
    assert {tuple(shard.shape) for shard in shards} == {((32 + 8 * groups) // tp_size, 3)}
    assert_round_trip(layout, tensors, shards)
