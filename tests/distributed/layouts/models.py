"""Tiny models of every supported family, and rollouts for them, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    DeepseekV3Config,
    Gemma3TextConfig,
    Glm4MoeConfig,
    GptOssConfig,
    Kimi_K25Config,
    LlamaConfig,
    Ministral3Config,
    Mistral3Config,
    MistralConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCAB_SIZE = 37  # divides nothing: every layout has padding columns
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
    "pad_token_id": None,  # transformers gives its embedding no gradient
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LLAMA4 = {"llama_4_scaling_beta": 0.1, "mscale": 1.0, "mscale_all_dim": 1.0}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 4.0,
}
_WINDOW = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}
_ROPE = {"rope_type": "default", "rope_theta": 500.0}
_LATENT = {"q_lora_rank": 12, "kv_lora_rank": 10, "qk_rope_head_dim": 6, "v_head_dim": 10, "qk_nope_head_dim": 8}
_SIGMOID_EXPERTS = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_shared_experts": 2,
    "routed_scaling_factor": 1.5,
    "num_nextn_predict_layers": 0,
}
_TINY_VISION = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 16,
    "patch_size": 8,
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "tie_word_embeddings": False}
CONFIGS = {
    "qwen2-tied": lambda: Qwen2Config(**_SHAPE, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**_SHAPE, tie_word_embeddings=False),
    "qwen3": lambda: Qwen3Config(**_SHAPE, head_dim=12, tie_word_embeddings=True),
    "llama": lambda: LlamaConfig(**_SHAPE, tie_word_embeddings=False, rope_parameters=_LLAMA3_ROPE),
    "mistral": lambda: MistralConfig(**_SHAPE, sliding_window=None),
    "mistral-window": lambda: MistralConfig(**_SHAPE, sliding_window=5),
    "qwen3-yarn-windows": lambda: Qwen3Config(**_SHAPE, **_WINDOW, head_dim=8, rope_parameters=_YARN),
    "ministral3": lambda: Ministral3Config(
        **_SHAPE,
        head_dim=8,
        rope_parameters=_YARN | {"llama_4_scaling_beta": 0.1, "mscale": 1.0, "mscale_all_dim": 1.0},
    ),
    "mixtral-window": lambda: MixtralConfig(**_SHAPE, num_local_experts=4, num_experts_per_tok=2, sliding_window=5),
    "gemma3": lambda: Gemma3TextConfig(
        **_SHAPE,
        head_dim=8,
        query_pre_attn_scalar=12,
        sliding_window=5,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={"sliding_attention": _ROPE, "full_attention": _ROPE | {"rope_type": "linear", "factor": 8.0}},
    ),
    "glm4-moe": lambda: Glm4MoeConfig(
        **_SHAPE,
        **_SIGMOID_EXPERTS,
        head_dim=8,
        attention_bias=True,
        use_qk_norm=True,
        first_k_dense_replace=1,
        rope_parameters=_ROPE | {"partial_rotary_factor": 0.5},
    ),
    "deepseek-v3": lambda: DeepseekV3Config(
        **_SHAPE | {"num_key_value_heads": 4},
        **_SIGMOID_EXPERTS | {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 4},
        **_LATENT,
        first_k_dense_replace=1,
        rope_parameters=_YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
    ),
    "gpt-oss": lambda: GptOssConfig(
        **_SHAPE,
        head_dim=12,
        num_local_experts=8,
        num_experts_per_tok=2,
        sliding_window=5,
        swiglu_limit=1.5,  # small enough to be met
        rope_parameters=_YARN | {"truncate": False, "beta_slow": 1.0},  # vLLM asks for it
    ),
    "mistral3": lambda: Mistral3Config(
        text_config=CONFIGS["ministral3"]().to_dict(),
        vision_config={"model_type": "pixtral", "head_dim": 8, **_TINY_VISION},
        tie_word_embeddings=False,
    ),
    "kimi-k25": lambda: Kimi_K25Config(
        text_config=CONFIGS["deepseek-v3"]().to_dict(),
        vision_config=_TINY_VISION,
        projection_hidden_size=8,
        tie_word_embeddings=False,
    ),
    "mixtral": lambda: MixtralConfig(**_SHAPE, num_local_experts=4, num_experts_per_tok=2),
    "qwen2-moe": lambda: Qwen2MoeConfig(
        **_SHAPE, **_EXPERTS, num_experts=4, shared_expert_intermediate_size=40, mlp_only_layers=[1]
    ),
    "qwen2-moe-upper": lambda: Qwen2MoeConfig(
        **_SHAPE, **_EXPERTS, num_experts=4, shared_expert_intermediate_size=40, mlp_only_layers=[0, 1]
    ),
    "qwen3-moe": lambda: Qwen3MoeConfig(**_SHAPE, **_EXPERTS, num_experts=8, head_dim=12, norm_topk_prob=True),
}
# What goes through every layout and every test of the suite.
KINDS = (
    "mistral-window",
    "qwen3-yarn-windows",
    "ministral3",
    "mixtral-window",
    "gemma3",
    "glm4-moe",
    "deepseek-v3",
    "gpt-oss",
)
# Models whose text is another family's: they go through a few layouts.
TEXT_PARTS = {"mistral3": "ministral3", "kimi-k25": "deepseek-v3"}


def has_experts(kind: str) -> bool:
    return hasattr(CONFIGS[kind]().get_text_config(), "num_experts_per_tok")


MIXTURES = tuple(kind for kind in KINDS if has_experts(kind))

BIASED_EXPERTS = ("gpt-oss",)  # which Megatron-Core can't cut over ranks
SCALED_AND_TIED = ("gemma3",)


def auto_class(config: Any) -> Any:
    return AutoModelForImageTextToText if hasattr(config, "text_config") else AutoModelForCausalLM


def load_model(folder: Path, **arguments: Any) -> Any:
    """What `from_pretrained` returns, in fp32."""
    cls = auto_class(AutoConfig.from_pretrained(folder))
    return cls.from_pretrained(folder, dtype=torch.float32, **arguments)


def make_model(kind: str, folder: Path, seed: int = 0, **sizes: Any) -> Path:
    """A random model with weights large enough that nothing is nearly linear, in Hugging Face format.

    sizes: fields of its configuration that are to be others.
    """
    torch.manual_seed(seed)
    config = CONFIGS[kind]()
    config.get_text_config().update(sizes)
    model = auto_class(config).from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.normal_(std=0.2)
        if kind in SCALED_AND_TIED:  # else the last token's own logit drowns the others
            model.get_input_embeddings().weight.mul_(0.25)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(std=0.2)
    save(model, folder)
    return folder


def save(model: Any, folder: Path, **arguments: Any) -> None:
    """As `save_pretrained`, by published names: transformers 5.19 calls a Kimi-K2.5's text layers `blocks`."""
    model.save_pretrained(folder, **arguments)
    file = folder / "model.safetensors"
    tensors = {name.replace("model.blocks.", "model.layers."): tensor for name, tensor in load_file(file).items()}
    if model.config.model_type == "kimi_k25":
        save_file(tensors, file, metadata={"format": "pt"})


def write_rollouts(path: Path, num_groups: int = 6, samples: int = 4, seed: int = 0) -> Path:
    """Groups of random responses of 1 to 14 tokens with rewards in [0, 1]; one response is empty.

    Each group has a preference matrix, too, which is no function of the rewards, and a human response.
    """
    random, of_pairs = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    lines = []
    for group in range(num_groups):
        responses = []
        for number in range(samples):
            length = 0 if (group, number) == (1, 2) else int(random.integers(1, 15))
            ids = random.integers(0, VOCAB_SIZE, length).tolist()
            responses.append({"token_ids": ids, "reward": float(np.round(random.random(), 3)), "finish_reason": "stop"})
        prompt = random.integers(0, VOCAB_SIZE, int(random.integers(1, 10))).tolist()
        upper = np.triu(of_pairs.random((samples, samples)), 1)
        preference = upper + np.tril(1 - upper.T, -1) + np.eye(samples) / 2
        human = of_pairs.integers(0, VOCAB_SIZE, int(of_pairs.integers(2, 12))).tolist()
        line = {"prompt_token_ids": prompt, "responses": responses}
        lines.append(json.dumps(line | {"preference": preference.tolist(), "human_token_ids": human}))
    path.write_text("\n".join(lines) + "\n")
    return path
