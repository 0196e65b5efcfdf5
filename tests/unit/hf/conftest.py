"""Tiny models made by transformers: every supported family, tied and untied, with every supported rope."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 37,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CONFIGS: dict[str, tuple[type, dict[str, Any]]] = {
    "qwen2": (Qwen2Config, {"tie_word_embeddings": False}),
    "qwen2-tied": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, {"tie_word_embeddings": False, "head_dim": 8}),
    "qwen3-tied": (Qwen3Config, {"tie_word_embeddings": True, "head_dim": 4}),
    "llama": (LlamaConfig, {"tie_word_embeddings": False, "rms_norm_eps": 1e-5}),
    "llama-one-kv-head": (LlamaConfig, {"num_key_value_heads": 1}),
    "llama-head-dim": (LlamaConfig, {"head_dim": 6}),
    "llama-linear": (LlamaConfig, {"rope_parameters": LINEAR}),
    "llama-llama3": (LlamaConfig, {"head_dim": 16, "rope_parameters": LLAMA3}),
}


def _config(name: str, **changes: Any) -> Any:
    kind, fields = CONFIGS[name]
    return kind(**{**SIZES, **fields, **changes})


@pytest.fixture(scope="session")
def make_config() -> Callable[..., Any]:
    """(name, **changes) -> a Hugging Face config."""
    return _config


@pytest.fixture(scope="session", params=CONFIGS)
def hf_model(request) -> Any:
    """A model whose every parameter is random, norms and biases too, so that no two tensors agree. Not to be edited."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(_config(request.param)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


@pytest.fixture(scope="session")
def stored(hf_model) -> dict[str, torch.Tensor]:
    """The model's tensors as they are stored: a tied head once."""
    tensors = {name: tensor.detach() for name, tensor in hf_model.state_dict().items()}
    if hf_model.config.tie_word_embeddings:
        assert torch.equal(tensors.pop("lm_head.weight"), tensors["model.embed_tokens.weight"])
    return tensors
