"""Tiny models of every family with every option that conversion must carry, as transformers writes them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config

from tests.distributed.layouts import models as layout_models

SHAPE = {
    "vocab_size": 37,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
CONFIGS = layout_models.CONFIGS | {
    "llama-tied-one-kv-head": lambda: LlamaConfig(**SHAPE, num_key_value_heads=1, tie_word_embeddings=True),
    "llama-linear-rope": lambda: LlamaConfig(**SHAPE, num_key_value_heads=4, rope_parameters=LINEAR),
    "mistral-wide-heads": lambda: MistralConfig(**SHAPE, num_key_value_heads=2, head_dim=16, sliding_window=None),
    "qwen2-bf16": lambda: Qwen2Config(**SHAPE, num_key_value_heads=2, dtype="bfloat16"),
}


def make_model(kind: str, folder: Path, *, fused_experts: bool = False) -> None:
    """Every parameter random, biases and norms too, so that no two tensors agree."""
    torch.manual_seed(0)
    config = CONFIGS[kind]()
    model = layout_models.auto_class(config).from_config(config, dtype=config.dtype or torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.2)
    layout_models.save(model, folder, save_original_format=not fused_experts)
