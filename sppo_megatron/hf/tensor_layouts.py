"""How Hugging Face tensors become one tensor-parallel shard of a Megatron parameter, and back.

A layout is an immutable description with two inverse functions, `shard` and `unshard`. It reads its sources by slices,
so a rank touches only the bytes of its own shard if the file format allows it (safetensors does).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class TensorSource(Protocol):
    """A tensor on disk or in memory that can be read by slices."""

    def get_shape(self) -> Sequence[int]: ...

    def __getitem__(self, index) -> Tensor: ...


class TensorLayout(Protocol):
    """`shapes` are the Hugging Face shapes, in the order of `hf_names`."""

    @property
    def hf_names(self) -> tuple[str, ...]: ...

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]: ...

    def shard(self, sources: Sequence[TensorSource], tp_rank: int, tp_size: int) -> Tensor:
        """This rank's shard of the Megatron parameter."""
        ...

    def unshard(self, shards: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The Hugging Face tensors, in the order of hf_names, from every tensor-parallel rank's shard."""
        ...


def _rows(size: int, tp_rank: int, tp_size: int) -> slice:
    return slice(tp_rank * size // tp_size, (tp_rank + 1) * size // tp_size)


@dataclass(frozen=True)
class _OneTensor:
    """A parameter that is one Hugging Face tensor. shape: the whole tensor's."""

    hf_name: str
    shape: tuple[int, ...]

    @property
    def hf_names(self) -> tuple[str, ...]:
        return (self.hf_name,)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return (self.shape,)


@dataclass(frozen=True)
class Replicated(_OneTensor):
    """The same tensor on every tensor-parallel rank: norms."""

    def shard(self, sources: Sequence[TensorSource], tp_rank: int, tp_size: int) -> Tensor:
        return sources[0][:]

    def unshard(self, shards: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (shards[0],)


@dataclass(frozen=True)
class Vocabulary(_OneTensor):
    """Rows are tokens, split over tensor-parallel ranks; zero rows pad the vocabulary to padded_size."""

    padded_size: int

    def shard(self, sources: Sequence[TensorSource], tp_rank: int, tp_size: int) -> Tensor:
        rows = _rows(self.padded_size, tp_rank, tp_size)
        real = sources[0][min(rows.start, self.shape[0]) : min(rows.stop, self.shape[0])]
        padding = rows.stop - rows.start - real.shape[0]
        return torch.cat([real, real.new_zeros(padding, self.shape[1])])

    def unshard(self, shards: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (torch.cat(list(shards))[: self.shape[0]],)


@dataclass(frozen=True)
class RowParallel(_OneTensor):
    """Megatron's RowParallelLinear: the input dimension (columns of the weight) is split."""

    def shard(self, sources: Sequence[TensorSource], tp_rank: int, tp_size: int) -> Tensor:
        return sources[0][:, _rows(self.shape[1], tp_rank, tp_size)]

    def unshard(self, shards: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (torch.cat(list(shards), dim=1),)


@dataclass(frozen=True)
class ColumnParallel(_OneTensor):
    """Megatron's ColumnParallelLinear: the output dimension (rows of the weight) is split."""

    def shard(self, sources: Sequence[TensorSource], tp_rank: int, tp_size: int) -> Tensor:
        return sources[0][_rows(self.shape[0], tp_rank, tp_size)]

    def unshard(self, shards: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (torch.cat(list(shards)),)


@dataclass(frozen=True)
class GatedMlp:
    """linear_fc1: gate and up projections, concatenated *per tensor-parallel shard*."""

    gate_name: str
    up_name: str
    shape: tuple[int, int]

    @property
    def hf_names(self) -> tuple[str, ...]:
        return (self.gate_name, self.up_name)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return (self.shape, self.shape)

    def shard(self, sources: Sequence[TensorSource], tp_rank: int, tp_size: int) -> Tensor:
        rows = _rows(self.shape[0], tp_rank, tp_size)
        return torch.cat([source[rows] for source in sources])

    def unshard(self, shards: Sequence[Tensor]) -> tuple[Tensor, ...]:
        gates, ups = zip(*(shard.chunk(2) for shard in shards), strict=True)
        return torch.cat(gates), torch.cat(ups)


@dataclass(frozen=True)
class InterleavedGatedMlp(_OneTensor):
    """linear_fc1 of a tensor for x @ W whose last dimension is gate, up, gate, up, ...; its bias as well."""

    def shard(self, sources: Sequence[TensorSource], tp_rank: int, tp_size: int) -> Tensor:
        columns = _rows(self.shape[-1] // 2, tp_rank, tp_size)
        before = (slice(None),) * (len(self.shape) - 1)
        part = sources[0][(*before, slice(2 * columns.start, 2 * columns.stop))].movedim(-1, 0)
        return torch.cat([part[::2], part[1::2]])

    def unshard(self, shards: Sequence[Tensor]) -> tuple[Tensor, ...]:
        gates, ups = zip(*(shard.chunk(2) for shard in shards), strict=True)
        by_turns = torch.stack([torch.cat(gates), torch.cat(ups)], dim=1).flatten(0, 1)
        return (by_turns.movedim(0, -1).contiguous(),)


@dataclass(frozen=True)
class TransposedRowParallel(_OneTensor):
    """Megatron's RowParallelLinear of a tensor for x @ W: its rows are split."""

    def shard(self, sources: Sequence[TensorSource], tp_rank: int, tp_size: int) -> Tensor:
        return sources[0][_rows(self.shape[0], tp_rank, tp_size)].T

    def unshard(self, shards: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (torch.cat(list(shards), dim=1).T.contiguous(),)


@dataclass(frozen=True)
class QueryKeyValue:
    """linear_qkv: for each key-value group its queries, its key and its value, one group after the other.

    Serves weights [heads · head_dim, hidden] and biases [heads · head_dim]. The rows of the interleaved tensor are
    split evenly over tensor-parallel ranks, even if there are more ranks than groups.
    """

    names: tuple[str, str, str]
    num_attention_heads: int
    num_query_groups: int
    head_dim: int
    hidden_size: int | None  # None for a bias

    @property
    def hf_names(self) -> tuple[str, ...]:
        return self.names

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        columns = () if self.hidden_size is None else (self.hidden_size,)
        queries, keys = self.num_attention_heads * self.head_dim, self.num_query_groups * self.head_dim
        return ((queries, *columns), (keys, *columns), (keys, *columns))

    def shard(self, sources: Sequence[TensorSource], tp_rank: int, tp_size: int) -> Tensor:
        if self.num_query_groups % tp_size == 0:
            parts = [
                source[_rows(shape[0], tp_rank, tp_size)] for source, shape in zip(sources, self.shapes, strict=True)
            ]
            return self._interleave(parts, self.num_query_groups // tp_size)
        whole = self._interleave([source[:] for source in sources], self.num_query_groups)
        return whole[_rows(whole.shape[0], tp_rank, tp_size)]

    def unshard(self, shards: Sequence[Tensor]) -> tuple[Tensor, ...]:
        whole = torch.cat(list(shards))
        columns = whole.shape[1:]
        queries = self.num_attention_heads // self.num_query_groups
        by_group = whole.view(self.num_query_groups, queries + 2, self.head_dim, *columns)
        parts = by_group.split([queries, 1, 1], dim=1)
        return tuple(part.reshape(-1, *columns) for part in parts)

    def _interleave(self, parts: Sequence[Tensor], groups: int) -> Tensor:
        columns = parts[0].shape[1:]
        by_group = [part.reshape(groups, -1, self.head_dim, *columns) for part in parts]
        return torch.cat(by_group, dim=1).reshape(-1, *columns)
