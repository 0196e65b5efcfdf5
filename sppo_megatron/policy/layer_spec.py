"""Which modules a layer is made of: Transformer Engine's where it is installed, plain torch ones elsewhere."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from sppo_megatron.policy.torch_attention import TorchAttention


def has_transformer_engine() -> bool:
    """Whether Transformer Engine's layers are used: it needs CUDA to run."""
    return torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None


class TorchNorm(torch.nn.RMSNorm):
    """torch's RMSNorm, constructed the way Megatron constructs its norms.

    Under sequence parallelism each rank norms its own slice of the sequence, so the weight's gradient is a partial
    sum: the mark makes `finalize_model_grads` all-reduce it over the tensor-parallel group.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any):
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype, device=device)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


def decoder_spec(
    config: TransformerConfig, vp_stage: int | None, pp_rank: int
) -> ModuleSpec | TransformerBlockSubmodules:
    """The layers of one model chunk and the norm after them."""
    if has_transformer_engine():
        return get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
    layer = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=config.qk_layernorm)
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = TorchNorm
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = TorchAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = TorchNorm
    num_layers = get_num_layers_to_build(config, vp_stage, pp_rank)
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=TorchNorm)
