"""The norms of a layer in plain torch, constructed the way Megatron constructs its own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn


class TorchNorm(nn.Module):
    """RMSNorm or LayerNorm over the last dimension, as `config.normalization` says.

    With `config.layernorm_zero_centered_gamma` the scale is 1 + weight, computed in fp32 (Gemma, Nemotron).
    Under sequence parallelism each rank norms its own slice of the sequence, so a parameter's gradient is a partial
    sum: the mark makes `finalize_model_grads` all-reduce it over the tensor-parallel group.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any):
        super().__init__()
        if config.normalization not in ("RMSNorm", "LayerNorm"):
            raise ValueError(f"normalization {config.normalization!r} is not supported: only RMSNorm and LayerNorm")
        on_gpu = torch.cuda.is_available() and not config.use_cpu_initialization
        device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else None
        self.eps = eps
        self.zero_centered_gamma = config.layernorm_zero_centered_gamma
        start = torch.zeros if self.zero_centered_gamma else torch.ones
        self.weight = nn.Parameter(start(hidden_size, dtype=config.params_dtype, device=device))
        self.bias = None
        if config.normalization == "LayerNorm":
            self.bias = nn.Parameter(torch.zeros(hidden_size, dtype=config.params_dtype, device=device))
        for parameter in self.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., hidden_size]; the result has its shape and dtype."""
        if self.zero_centered_gamma:
            bias = None if self.bias is None else self.bias.float()
            return self._norm(x.float(), self.weight.float() + 1, bias).to(x.dtype)
        return self._norm(x, self.weight, self.bias)

    def _norm(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if bias is None:
            return F.rms_norm(x, weight.shape, weight, self.eps)
        return F.layer_norm(x, weight.shape, weight, bias, self.eps)
