"""Megatron's protocol for adding a weight's gradient straight to its fp32 `main_grad`, past autograd.

With `gradient_accumulation_fusion` Megatron's data-parallel wrapper gives every parameter a `main_grad`. Who adds to it
himself sets `grad_added_to_main_grad`; the wrapper's hook then leaves the autograd gradient alone, except if
`zero_out_wgrad` says that the parameter has a second use, whose gradient comes through autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor


def main_grad_of(weight: Tensor, gradient_accumulation_fusion: bool) -> Tensor | None:
    """The tensor of the weight's shape to add its gradient to; None if autograd is to have it."""
    return getattr(weight, "main_grad", None) if gradient_accumulation_fusion else None


def mark_added(weight: Tensor) -> Tensor | None:
    """Says that `main_grad` has the gradient. Returns a placeholder for autograd, whose hooks run only for one."""
    if not hasattr(weight, "grad_added_to_main_grad"):
        return None
    weight.grad_added_to_main_grad = True
    return torch.zeros_like(weight) if getattr(weight, "zero_out_wgrad", False) else torch.empty_like(weight)
