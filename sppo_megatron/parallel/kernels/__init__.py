"""Triton kernels over a tile of logits, and whether they are used. This module imports no Triton; `softmax` does.

softmax.py  statistics of a tile in one pass that only reads it; the gradient in place of the tile
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

CHOICES = ("auto", "torch", "triton")


class Kernels(Protocol):
    """What `softmax` implements; the formulas are those of `softmax_statistics`."""

    def update_statistics(self, tile: Tensor, targets: Tensor, packed: Tensor, first: int, scale: float) -> None:
        """Adds the logits `tile * scale` [n, v] of the columns from `first` on to packed [3 or 4, n], in place."""

    def write_gradient(
        self,
        tile: Tensor,
        out: Tensor,
        targets: Tensor,
        log_sum_exp: Tensor,
        first: int,
        scale: float,
        *,
        log_prob_grad: Tensor | None = None,
        entropy_grad: Tensor | None = None,
        entropy: Tensor | None = None,
        coefficient: Tensor | None = None,
    ) -> None:
        """Writes `LogitGradient`'s tile for the logits `tile * scale` [n, v] of the columns from `first` on into `out`.

        out may be the tile. targets and the others are [n]; with entropy_grad, log_prob_grad and entropy are needed.
        coefficient multiplies the rows of the result.
        """


def select_kernels(choice: str, device: torch.device, dtype: torch.dtype) -> Kernels | None:
    """The kernels to use for a computation in this dtype, None for plain torch.

    choice: auto (on CUDA if Triton is installed, in float32), torch, or triton. Raises ValueError on any other, and
    on triton if it can't run: not installed, float64, or a CPU without Triton's interpreter (TRITON_INTERPRET=1).
    """
    if choice not in CHOICES:
        raise ValueError(f"kernels is {choice!r}: choose one of {', '.join(CHOICES)}")
    if choice == "torch" or (choice == "auto" and not _runs_natively(device, dtype)):
        return None
    if not _installed():
        raise ValueError("kernels='triton' needs the package triton: pip install triton, or choose 'auto'")
    if dtype != torch.float32 or (device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1"):
        raise ValueError(f"kernels='triton' can't run {dtype} on {device}: choose 'auto'")
    return _load()


def _load() -> Kernels:
    from . import softmax

    return softmax


def _runs_natively(device: torch.device, dtype: torch.dtype) -> bool:
    return device.type == "cuda" and dtype == torch.float32 and _installed()


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None
