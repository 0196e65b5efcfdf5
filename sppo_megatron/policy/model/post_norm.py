"""A row-parallel product whose result is normed before it is added to the residual stream (Gemma)."""

from __future__ import annotations

from functools import cache
from typing import Any

from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


@cache
def with_post_norm(linear: type, norm: type) -> type:
    """A class as `linear` that norms its result by a `norm` called post_norm, each token by itself."""

    class RowParallelLinearWithNorm(linear):
        def __init__(self, input_size: int, output_size: int, *, config: TransformerConfig, **kwargs: Any):
            super().__init__(input_size, output_size, config=config, **kwargs)
            self.post_norm = norm(config, output_size, config.layernorm_epsilon)

        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            output, bias = super().forward(x)
            assert bias is None, "a bias would have to be added before the norm"
            return self.post_norm(output), None

    return RowParallelLinearWithNorm
