"""Megatron parameters back to Hugging Face tensors, streamed: a few whole tensors at a time, never the whole model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import torch
import torch.distributed as dist
from torch import Tensor

from sppo_megatron.cluster.consensus import of_all_ranks
from sppo_megatron.hf.mapping import canonical_name, expert_index
from sppo_megatron.hf.tensor_layouts import TensorLayout


@dataclass(frozen=True)
class _Shard:
    """What a rank holds of a parameter, and who holds it: a pipeline stage and an expert-parallel rank of it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    ep_rank: int
    stage: int = 0


AHEAD_BYTES = 2**24  # of whole tensors that are made together: small ones don't come one by one


def stream_hf_tensors(
    parameters: Mapping[str, Tensor],
    layouts: Mapping[str, TensorLayout],
    *,
    tp_group: dist.ProcessGroup,
    pp_group: dist.ProcessGroup,
    device: torch.device,
    ep_group: dist.ProcessGroup | None = None,
    expert_tp_group: dist.ProcessGroup | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Yields (Hugging Face name, whole tensor) in the model's order, the same on every rank.

    parameters: this rank's shards by global Megatron name. ep_group and expert_tp_group: where experts are, if not on
    every rank and sharded as all else. Every rank of all groups must run the iterator to its end: each tensor costs one
    all-gather over the tensor-parallel group that holds it and one broadcast over the expert-parallel group and the
    pipeline. Tensors have the parameters' dtype; each is the caller's own. Those up to AHEAD_BYTES are there together.
    """
    tensors = _tensors(parameters, layouts, tp_group, pp_group, device, ep_group, expert_tp_group)
    return chain.from_iterable(buckets(tensors, AHEAD_BYTES))


@torch.no_grad()
def _tensors(
    parameters: Mapping[str, Tensor],
    layouts: Mapping[str, TensorLayout],
    tp_group: dist.ProcessGroup,
    pp_group: dist.ProcessGroup,
    device: torch.device,
    ep_group: dist.ProcessGroup | None,
    expert_tp_group: dist.ProcessGroup | None,
) -> Iterator[tuple[str, Tensor]]:
    local = {canonical_name(name): parameter for name, parameter in parameters.items()}
    holders = _find_holders(local, pp_group, ep_group)
    for name, layout in layouts.items():
        held = holders.get(name)
        if held is None:
            raise RuntimeError(f"no pipeline stage holds {name}")
        is_expert = expert_index(name) is not None
        group = expert_tp_group if is_expert and expert_tp_group is not None else tp_group
        shards = [torch.empty(held.shape, dtype=held.dtype, device=device) for _ in range(group.size())]
        if pp_group.rank() == held.stage:
            if name in local and (not is_expert or ep_group is None or ep_group.rank() == held.ep_rank):
                dist.all_gather(shards, _plain(local[name].detach()).contiguous(), group=group)
            if is_expert:
                _broadcast(shards, held.ep_rank, ep_group)
        _broadcast(shards, held.stage, pp_group)
        yield from zip(layout.hf_names, layout.unshard(shards), strict=True)


def buckets(weights: Iterable[tuple[str, Tensor]], max_bytes: int) -> Iterator[list[tuple[str, Tensor]]]:
    """Neighbours together, up to max_bytes; a tensor that is larger comes alone."""
    bucket: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in weights:
        if bucket and size + tensor.nbytes > max_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, tensor))
        size += tensor.nbytes
    if bucket:
        yield bucket


def _plain(tensor: Tensor) -> Tensor:
    """A weight that Transformer Engine stores in FP8, a subclass of Tensor, as numbers of the dtype it stands for."""
    return tensor if type(tensor) is Tensor else tensor.dequantize()


def _find_holders(
    local: Mapping[str, Tensor], pp_group: dist.ProcessGroup, ep_group: dist.ProcessGroup | None
) -> dict[str, _Shard]:
    """Of each parameter, the first pipeline stage and expert-parallel rank that holds it."""
    ep_rank = 0 if ep_group is None else ep_group.rank()
    mine = {name: _Shard(tuple(tensor.shape), tensor.dtype, ep_rank) for name, tensor in local.items()}
    of_stage = _merge(_gather(mine, ep_group))
    return _merge(
        {name: _Shard(held.shape, held.dtype, held.ep_rank, stage) for name, held in found.items()}
        for stage, found in enumerate(_gather(of_stage, pp_group))
    )


def _gather(value: dict[str, _Shard], group: dist.ProcessGroup | None) -> list[dict[str, _Shard]]:
    return [value] if group is None or group.size() == 1 else of_all_ranks(value, group)


def _merge(parts) -> dict[str, _Shard]:
    merged: dict[str, _Shard] = {}
    for part in parts:
        for name, held in part.items():
            merged.setdefault(name, held)
    return merged


def _broadcast(tensors: list[Tensor], source: int, group: dist.ProcessGroup | None) -> None:
    if group is None or group.size() == 1:
        return
    for tensor in tensors:
        dist.broadcast(tensor, group=group, group_src=source)
