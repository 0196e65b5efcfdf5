"""Tiny models of families that only megatron-bridge maps."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma2Config, GemmaConfig, GPT2Config, NemotronConfig, OlmoeConfig

VOCAB_SIZE = 37  # odd: two tensor-parallel ranks have a padding column
_SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 1,
    "bos_token_id": None,
    "pad_token_id": None,  # transformers gives the embedding of padding no gradient, and these tokens are all real
}
CONFIGS = {
    # zero-centred RMS norms, scaled embeddings, a gated tanh GELU, tied
    "gemma": lambda: GemmaConfig(**_SHAPE, head_dim=12),
    # zero-centred LayerNorms with biases, a squared ReLU without a gate, rotary positions in half of each head
    "nemotron": lambda: NemotronConfig(**_SHAPE),
}
# what can't be trained through the Bridge, and what the message says
_REFUSED_CONFIGS = {
    "gemma-untied": lambda: GemmaConfig(**_SHAPE, head_dim=12, tie_word_embeddings=False),
    "gemma2": lambda: Gemma2Config(**_SHAPE, head_dim=12),
    "olmoe": lambda: OlmoeConfig(**_SHAPE, num_experts=4),
    "gpt2": lambda: GPT2Config(vocab_size=VOCAB_SIZE, n_embd=32, n_layer=1, n_head=2),
    "nemotron-linear-rope": lambda: NemotronConfig(
        **_SHAPE,
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    ),
}
REFUSED = {
    "gemma-untied": "has an output layer apart from the embedding",
    "gemma2": "has capped logits, layers that need CUDA and Transformer Engine, sliding-window attention",
    "olmoe": "has a mixture of experts",
    "gpt2": "'gpt2' is not among this project's own (llama, mistral, qwen2,",
    "nemotron-linear-rope": "has scaled rotary positions",
    "gemma-scaled-logits": "is no plain decoder whose logits are a product of hidden states and weights",
    "torn": "missing: model.layers.1.mlp.up_proj.weight; unexpected: model.layers.1.mlp.top_proj.weight",
}


def make_refused(folder: Path) -> None:
    for name, config in _REFUSED_CONFIGS.items():
        AutoModelForCausalLM.from_config(config()).save_pretrained(folder / name)
    (folder / "torn").mkdir()
    (folder / "torn" / "config.json").write_text((folder / "nemotron" / "config.json").read_text())
    tensors = load_file(folder / "nemotron" / "model.safetensors")
    tensors["model.layers.1.mlp.top_proj.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "torn" / "model.safetensors", metadata={"format": "pt"})


def make_model(kind: str, folder: Path) -> Path:
    """Random weights large enough that nothing is nearly linear, in Hugging Face format."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind](), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    return folder
