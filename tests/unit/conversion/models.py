"""Tiny models made by transformers, for the tests of this folder."""

from __future__ import annotations

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
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CONFIGS = {
    "qwen2": lambda: Qwen2Config(**SIZES, tie_word_embeddings=False),
    "qwen2-tied": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True, rope_theta=1e6),
    "qwen3": lambda: Qwen3Config(**SIZES, tie_word_embeddings=False, head_dim=8),
    "qwen3-tied": lambda: Qwen3Config(**SIZES, tie_word_embeddings=True, head_dim=4),
    "llama": lambda: LlamaConfig(**SIZES, tie_word_embeddings=False),
    "llama-one-kv-head": lambda: LlamaConfig(**{**SIZES, "num_key_value_heads": 1}, rms_norm_eps=1e-5),
    "llama-head-dim": lambda: LlamaConfig(**SIZES, head_dim=6),
    "llama-linear": lambda: LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "factor": 4.0}),
    "llama-llama3": lambda: LlamaConfig(**{**SIZES, "hidden_size": 64}, rope_parameters=LLAMA3),
}


def make_model(name: str, dtype: torch.dtype = torch.float32):
    """Random everywhere, so that no two tensors agree: norms and biases too."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model.eval()


def stored_tensors(model) -> dict[str, torch.Tensor]:
    """What save_pretrained would write: a tied head is stored once."""
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        assert torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
        del tensors["lm_head.weight"]
    return tensors
