"""Global sums, counts and maxima: many scalars, one collective."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor


def reduce_sums(sums: Mapping[str, Tensor], group: dist.ProcessGroup | None = None) -> dict[str, float]:
    """The sum of each scalar over the ranks of `group`, in float64, by one all-reduce and one read-back.

    A mean is the quotient of two of them (a sum and a count), never a mean of means. Values are packed in sorted order
    of their keys: every rank must pass the same keys, which is not checked. group=None communicates nothing.
    Raises ValueError on a value that is not a scalar.
    """
    return _reduce(sums, dist.ReduceOp.SUM, group)


def reduce_max(values: Mapping[str, Tensor], group: dist.ProcessGroup | None = None) -> dict[str, float]:
    """The maximum of each scalar over the ranks of `group`, by one all-reduce; same keys on every rank.

    A NaN on any rank comes back as inf: a MAX could lose it, depending on the order of ranks.
    Raises ValueError on a value that is not a scalar.
    """
    return _reduce(values, dist.ReduceOp.MAX, group)


def _reduce(
    values: Mapping[str, Tensor], op: dist.ReduceOp.RedOpType, group: dist.ProcessGroup | None
) -> dict[str, float]:
    if not values:
        return {}
    keys = sorted(values)
    for key in keys:
        if values[key].numel() != 1:
            raise ValueError(f"{key!r} has shape {list(values[key].shape)}, but must be a scalar: sum it first")
    device = _device(values, group)
    packed = torch.stack([values[key].detach().reshape(()).to(device, torch.float64) for key in keys])
    if op == dist.ReduceOp.MAX:
        packed = packed.nan_to_num(nan=float("inf"), posinf=float("inf"), neginf=float("-inf"))
    if group is not None:
        dist.all_reduce(packed, op=op, group=group)
    return dict(zip(keys, packed.tolist(), strict=True))


def _device(values: Mapping[str, Tensor], group: dist.ProcessGroup | None) -> torch.device:
    """Where the tensors are; an accelerator wins over the CPU, and nccl cannot work from the CPU."""
    for value in values.values():
        if value.device.type != "cpu":
            return value.device
    if group is not None and dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
