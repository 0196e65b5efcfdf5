"""Experts with biases in Megatron-Core's torch layers."""

from __future__ import annotations

from megatron.core.tensor_parallel.layers import RowParallelLinear
from torch import Tensor


class ExpertDownProjection(RowParallelLinear):
    """Its result is a tensor of its own: Megatron's MLP adds the bias in place, which a view does not take."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        output, bias = super().forward(x)
        return output.clone(), bias
