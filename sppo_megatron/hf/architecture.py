"""The shape of a decoder-only model: everything that its layers, its weights and its parallel layouts follow from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

Activation = Literal["silu", "gelu_tanh", "quick_gelu"]


@dataclass(frozen=True)
class MixtureOfExperts:
    """The MLP of the layers in which a router sends each token to some of many experts.

    layers: for each layer of the model, whether it is such a layer. normalizes_topk: the chosen experts' probabilities
    sum to 1. shared_ffn_hidden_size: of the expert that every token visits, None without one; shared_gate: whether a
    sigmoid of the token weighs it. score_function: of the logits. num_groups, group_topk: experts are chosen from the
    best groups alone; None without groups. scaling_factor: of the chosen probabilities. expert_bias: a bias that only
    the choice sees (DeepSeek's balancing without a loss).
    """

    num_experts: int
    num_experts_per_token: int
    ffn_hidden_size: int
    shared_ffn_hidden_size: int | None
    normalizes_topk: bool
    aux_loss_coeff: float
    layers: list[bool]
    shared_gate: bool = False
    score_function: Literal["softmax", "sigmoid"] = "softmax"
    num_groups: int | None = None
    group_topk: int | None = None
    scaling_factor: float = 1.0
    expert_bias: bool = False


@dataclass(frozen=True)
class LatentAttention:
    """Multi-latent attention (DeepSeek-V2): queries and keys/values come from vectors of q_rank and kv_rank.

    q_rank: None if queries are projected straight from the hidden state. A head's query and key have qk_dim
    components and rope_dim rotated ones, its value has v_dim. rotary_scaling_factor, mscale_all_dim: YaRN's, which q·k
    is scaled by.
    """

    q_rank: int | None
    kv_rank: int
    qk_dim: int
    rope_dim: int
    v_dim: int
    rotary_scaling_factor: float = 1.0
    mscale_all_dim: float = 0.0


@dataclass(frozen=True)
class Architecture:
    """A decoder with rotary positions, RMS norms and gated MLPs, dense or a mixture of experts.

    prefix: of its tensors' Hugging Face names where it is a part of a model; the others are no part of the policy.
    ffn_hidden_size: of the dense MLPs. mixture: None for a dense model. latent: None if queries are grouped.
    rotary_inv_freq: fp32 [rotated components / 2], the inverse frequencies after any rope scaling (radians per token).
    windows: of each layer the keys that a query sees, its own among them, None for all before it; [] without windows.
    local_rotary_inv_freq: of the layers with a window, if theirs differ. softmax_scale: of q·k; None: 1/√head_dim.
    longest_sequence: tokens beyond which positions would not mean what they mean to transformers; None: no end.
    post_norms: what attention and MLP return is normed before it is added. zero_centered_norms: norms scale by 1 + w.
    embedding_scale: of the embeddings, rounded to their dtype. linear_biases: the projection behind attention, experts
    and routers have biases. sinks: each head has a logit that takes probability and gives nothing. activation_clamp:
    the gate is limited from above, the other half from both sides; up_offset: added to the other half.
    """

    family: str
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    norm_epsilon: float
    qkv_bias: bool
    qk_norm: bool
    tied_embeddings: bool
    initializer_range: float
    rotary_inv_freq: torch.Tensor
    mixture: MixtureOfExperts | None = None
    latent: LatentAttention | None = None
    windows: list[int | None] = field(default_factory=list)
    local_rotary_inv_freq: torch.Tensor | None = None
    softmax_scale: float | None = None
    longest_sequence: int | None = None
    activation: Activation = "silu"
    post_norms: bool = False
    zero_centered_norms: bool = False
    embedding_scale: float | None = None
    linear_biases: bool = False
    sinks: bool = False
    activation_clamp: float | None = None
    up_offset: float = 0.0
    prefix: str = ""

    def padded_vocab_size(self, divisible_by: int, tensor_model_parallel_size: int) -> int:
        """The vocabulary with padding columns, a multiple of divisible_by × tensor_model_parallel_size."""
        multiple = divisible_by * tensor_model_parallel_size
        return -(-self.vocab_size // multiple) * multiple

    def layout_sizes(self) -> dict[str, Any]:
        """What parallel sizes must divide: the arguments of `validation.check_layout`."""
        return {
            "num_layers": self.num_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_query_groups": self.num_query_groups,
            "ffn_hidden_size": self.ffn_hidden_size,
            "num_experts": self.mixture.num_experts if self.mixture else None,
            "expert_ffn_hidden_size": self.mixture.ffn_hidden_size if self.mixture else None,
            "biased_experts": self.linear_biases,
        }
