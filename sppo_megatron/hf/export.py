"""Megatron parameters back to Hugging Face tensors, streamed: a few whole tensors at a time, never the whole model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sppo_megatron.cluster.consensus import of_all_ranks
from sppo_megatron.hf.mapping import canonical_name, expert_index
from sppo_megatron.hf.tensor_layouts import Replicated, TensorLayout

T = TypeVar("T")
AHEAD_BYTES = 2**24  # of whole tensors that are made together: small ones don't come one by one


@dataclass(frozen=True)
class ExportGroups:
    """Where the shards are. expert_tp: of experts, which are split over it and not over tp. ep: None without one."""

    tp: dist.ProcessGroup
    pp: dist.ProcessGroup
    ep: dist.ProcessGroup | None = None
    expert_tp: dist.ProcessGroup | None = None


@dataclass(frozen=True)
class _Held:
    """A parameter's shard, and who has it: the first pipeline stage and the first expert-parallel rank that do."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    ep_rank: int
    stage: int = 0


@dataclass(frozen=True)
class _Bucket:
    """Parameters that take the same way: from one stage and expert-parallel rank, split over one group or not."""

    names: tuple[str, ...]
    held: _Held
    shapes: tuple[tuple[int, ...], ...]
    is_expert: bool
    is_split: bool


class ExportPlan:
    """What is sent when, by whom: made once for a model, the same on every rank. Collective.

    parameters: this rank's shards by global Megatron name. Raises RuntimeError if no stage holds a layout's parameter.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], layouts: Mapping[str, TensorLayout], groups: ExportGroups
    ) -> None:
        self.layouts, self.groups = layouts, groups
        self.holders = _find_holders(_by_canonical_name(parameters), groups)
        if missing := [name for name in layouts if name not in self.holders]:
            raise RuntimeError(f"no pipeline stage holds {missing[0]}")
        sizes = ((name, self._whole_bytes(name)) for name in layouts)
        self.windows = [[name for name, _ in window] for window in _windows(sizes, AHEAD_BYTES)]

    def group_of(self, name: str) -> dist.ProcessGroup:
        """The group that a parameter is split over."""
        is_expert = expert_index(name) is not None
        return self.groups.expert_tp if is_expert and self.groups.expert_tp is not None else self.groups.tp

    def buckets(self, window: list[str]) -> list[_Bucket]:
        """Of a window's parameters, in the same order on every rank."""
        ways = {name: self._way(name) for name in window}
        order = sorted(window, key=lambda name: str(ways[name]))
        found = []
        for (is_expert, is_split, _), group in groupby(order, key=lambda name: ways[name]):
            names = tuple(group)
            shapes = tuple(self.holders[name].shape for name in names)
            found.append(_Bucket(names, self.holders[names[0]], shapes, is_expert, is_split))
        return found

    def _way(self, name: str) -> tuple[bool, bool, tuple[int, int, torch.dtype]]:
        held, is_expert = self.holders[name], expert_index(name) is not None
        is_split = self.group_of(name).size() > 1 and not isinstance(self.layouts[name], Replicated)
        return is_expert, is_split, (held.stage, held.ep_rank if is_expert else 0, held.dtype)

    def _whole_bytes(self, name: str) -> int:
        held = self.holders[name]
        return prod(held.shape) * held.dtype.itemsize * self.group_of(name).size()


@torch.no_grad()
def stream_hf_tensors(
    parameters: Mapping[str, Tensor], plan: ExportPlan, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Yields (Hugging Face name, whole tensor) in the model's order, the same on every rank.

    parameters: those of the plan, with their present values. Every rank must run the iterator to its end. Tensors have
    the parameters' dtype; each is the caller's own. Those up to AHEAD_BYTES are there together.
    Shards travel: first to the ranks of other stages that hold the same shard of their own parameters, while the
    tensors before are used, then to the tensor-parallel neighbours. Each rank receives each byte that it lacks once.
    """
    local = _by_canonical_name(parameters)

    def send(windows: list[list[str]]) -> list[_Sent]:
        return [_Sent(bucket, plan.groups, local, device) for names in windows for bucket in plan.buckets(names)]

    sent = send(plan.windows[:1])
    for number, window in enumerate(plan.windows):
        shards = {name: of_name for bucket in sent for name, of_name in bucket.gathered().items()}
        sent = send(plan.windows[number + 1 : number + 2])
        for name in window:
            layout = plan.layouts[name]
            yield from zip(layout.hf_names, layout.unshard(shards.pop(name)), strict=True)


class _Sent:
    """A bucket on its way through the stages. gathered: [shards of every rank that it is split over], by name."""

    def __init__(
        self, bucket: _Bucket, groups: ExportGroups, local: Mapping[str, Tensor], device: torch.device
    ) -> None:
        self._bucket = bucket
        over = groups.expert_tp if bucket.is_expert and groups.expert_tp is not None else groups.tp
        self._over = over
        held, ep = bucket.held, groups.ep if bucket.is_expert else None
        self._sizes = [prod(shape) for shape in bucket.shapes]
        self._flat = torch.empty(sum(self._sizes), dtype=held.dtype, device=device)
        is_of_stage = groups.pp.rank() == held.stage
        if is_of_stage and (ep is None or ep.rank() == held.ep_rank):
            for part, name in zip(self._flat.split(self._sizes), bucket.names, strict=True):
                part.copy_(_plain(local[name].detach()).reshape(-1))
        if is_of_stage and ep is not None and ep.size() > 1:
            dist.broadcast(self._flat, group=ep, group_src=held.ep_rank)
        self._work = None
        if groups.pp.size() > 1:
            self._work = dist.broadcast(self._flat, group=groups.pp, group_src=held.stage, async_op=True)

    def gathered(self) -> dict[str, list[Tensor]]:
        if self._work is not None:
            self._work.wait()
        size = self._over.size()
        flats = [self._flat] * size
        if self._bucket.is_split:
            whole = self._flat.new_empty(size, len(self._flat))
            dist.all_gather_into_tensor(whole.view(-1), self._flat, group=self._over)
            flats = list(whole)
        parts = [flat.split(self._sizes) for flat in flats]
        named = enumerate(zip(self._bucket.names, self._bucket.shapes, strict=True))
        return {name: [of_rank[place].view(shape) for of_rank in parts] for place, (name, shape) in named}


def buckets(weights: Iterable[tuple[str, Tensor]], max_bytes: int) -> Iterator[list[tuple[str, Tensor]]]:
    """Neighbours together, up to max_bytes; a tensor that is larger comes alone."""
    sized = (((name, tensor), tensor.nbytes) for name, tensor in weights)
    return ([pair for pair, _ in window] for window in _windows(sized, max_bytes))


def _windows(sized: Iterable[tuple[T, int]], max_bytes: int) -> Iterator[list[tuple[T, int]]]:
    window: list[tuple[T, int]] = []
    total = 0
    for item, size in sized:
        if window and total + size > max_bytes:
            yield window
            window, total = [], 0
        window.append((item, size))
        total += size
    if window:
        yield window


def _plain(tensor: Tensor) -> Tensor:
    """A weight that Transformer Engine stores in FP8, a subclass of Tensor, as numbers of the dtype it stands for."""
    return tensor if type(tensor) is Tensor else tensor.dequantize()


def _by_canonical_name(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {canonical_name(name): parameter for name, parameter in parameters.items()}


def _find_holders(local: Mapping[str, Tensor], groups: ExportGroups) -> dict[str, _Held]:
    ep_rank = 0 if groups.ep is None else groups.ep.rank()
    mine = {name: _Held(tuple(tensor.shape), tensor.dtype, ep_rank) for name, tensor in local.items()}
    of_stage = _merge(_gather(mine, groups.ep))
    return _merge(
        {name: _Held(held.shape, held.dtype, held.ep_rank, stage) for name, held in found.items()}
        for stage, found in enumerate(_gather(of_stage, groups.pp))
    )


def _gather(value: dict[str, _Held], group: dist.ProcessGroup | None) -> list[dict[str, _Held]]:
    return [value] if group is None or group.size() == 1 else of_all_ranks(value, group)


def _merge(parts) -> dict[str, _Held]:
    merged: dict[str, _Held] = {}
    for part in parts:
        for name, held in part.items():
            merged.setdefault(name, held)
    return merged
