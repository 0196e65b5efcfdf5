"""What the objective raises on. Every message names the argument, what was wrong, and the fix.

The checks of values (`check_finite`, `check_mask`, `check_probability`, ...) wait for the device; callers skip them
with `validate=False`. The checks of shapes and names never do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def as_float(x: Tensor) -> Tensor:
    """float64 stays float64, everything else becomes fp32: sums in bf16 lose the signal."""
    return x if x.dtype == torch.float64 else x.float()


def check_choice(name: str, value: object, allowed: Iterable[str]) -> None:
    names = tuple(allowed)
    if value not in names:
        raise ValueError(f"{name}: unknown value {value!r}; use one of {', '.join(names)}")


def check_positive(name: str, value: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: must be a number above 0, got {value!r}") from None
    if not math.isfinite(number) or number <= 0:
        raise ValueError(f"{name}: must be a finite number above 0, got {number}")
    return number


def check_ndim(name: str, tensor: Tensor, layout: str) -> None:
    """layout: the expected axes as text, e.g. "[B, T]"."""
    if tensor.ndim != layout.count(",") + 1:
        raise ValueError(f"{name}: expected shape {layout}, got {list(tensor.shape)}; reshape it to {layout}")


def check_same_shape(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Shapes have to be equal: (B, 1) against (B,) would broadcast to (B, B)."""
    if tensor.shape != other.shape:
        raise ValueError(
            f"{name}: shape {list(tensor.shape)} differs from {other_name}'s {list(other.shape)}; "
            "nothing is broadcast, reshape one of them"
        )


def check_finite(name: str, tensor: Tensor, at: Tensor | None = None) -> None:
    """Raises if `tensor` is NaN or infinite; with `at` (bool, same shape) only those places count."""
    if not tensor.is_floating_point():
        return
    bad = ~torch.isfinite(tensor.detach())
    if at is not None:
        bad = bad & at
    if bool(bad.any()):
        place = bad.nonzero()[0].tolist()
        raise ValueError(
            f"{name}: {int(bad.sum())} non-finite value(s) at valid places, the first at index {place}; "
            "fix what produced them, or mask those places"
        )


def check_mask(name: str, mask: Tensor) -> None:
    if mask.dtype != torch.bool and bool(((mask != 0) & (mask != 1)).any()):
        raise ValueError(f"{name}: holds values other than 0 and 1; pass a bool or a 0/1 mask")


def check_probability(name: str, tensor: Tensor, at: Tensor | None = None) -> None:
    """Raises if `tensor` is NaN or outside [0, 1]; with `at` only those places count."""
    bad = ~((tensor.detach() >= 0) & (tensor.detach() <= 1))  # NaN compares false, so it is bad
    if at is not None:
        bad = bad & at
    if bool(bad.any()):
        place = bad.nonzero()[0].tolist()
        raise ValueError(
            f"{name}: {int(bad.sum())} value(s) outside [0, 1], the first at index {place}; "
            "pass probabilities, or scalar scores through preference_from_scores"
        )


def check_nonnegative(name: str, tensor: Tensor, at: Tensor | None = None) -> None:
    check_finite(name, tensor, at)
    bad = tensor.detach() < 0
    if at is not None:
        bad = bad & at
    if bool(bad.any()):
        raise ValueError(f"{name}: {int(bad.sum())} negative value(s); pass values of 0 or more")


def check_group_ids(group_ids: Tensor | None, rows_name: str, rows: Tensor) -> Tensor:
    """The group ids, checked: one integer a row. Equal ids are one prompt's group, in any order."""
    if group_ids is None:
        raise ValueError(
            f"group_ids: missing, so {rows_name} can't be told apart by prompt; pass one integer per row "
            "(a group split across ranks needs its whole group gathered first)"
        )
    check_same_shape("group_ids", group_ids, rows_name, rows)
    if group_ids.is_floating_point() or group_ids.is_complex():
        raise ValueError(f"group_ids: must be integers, got {group_ids.dtype}; convert with .long()")
    return group_ids
