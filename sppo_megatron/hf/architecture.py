"""The shape of a decoder-only model, read from its Hugging Face config and checked for what we can build."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.families import Family, family_of
from sppo_megatron.hf.remote_code import remote_code_refused


@dataclass(frozen=True)
class MixtureOfExperts:
    """The MLP of the layers in which a router sends each token to some of many experts.

    layers: for each layer of the model, whether it is such a layer. normalizes_topk: the chosen experts' probabilities
    sum to 1. shared_ffn_hidden_size: of the expert that every token visits, None without one.
    """

    num_experts: int
    num_experts_per_token: int
    ffn_hidden_size: int
    shared_ffn_hidden_size: int | None
    normalizes_topk: bool
    aux_loss_coeff: float
    layers: list[bool]


@dataclass(frozen=True)
class Architecture:
    """A decoder with rotary positions, RMS norms and gated SiLU MLPs, dense or a mixture of experts.

    ffn_hidden_size: of the dense MLPs. mixture: None for a dense model.
    rotary_inv_freq: fp32 [head_dim / 2], the inverse frequencies after any rope scaling (radians per token).
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

    def padded_vocab_size(self, divisible_by: int, tensor_model_parallel_size: int) -> int:
        """The vocabulary with padding columns, a multiple of divisible_by × tensor_model_parallel_size."""
        multiple = divisible_by * tensor_model_parallel_size
        return -(-self.vocab_size // multiple) * multiple

    def layout_sizes(self) -> dict[str, int | None]:
        """What parallel sizes must divide: the arguments of `validation.check_layout`."""
        return {
            "num_layers": self.num_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_query_groups": self.num_query_groups,
            "ffn_hidden_size": self.ffn_hidden_size,
            "num_experts": self.mixture.num_experts if self.mixture else None,
            "expert_ffn_hidden_size": self.mixture.ffn_hidden_size if self.mixture else None,
        }


def load_hf_config(hf_path: str) -> Any:
    """The Hugging Face config at a local folder or hub id. Raises ConfigError that says what to put there."""
    with remote_code_refused(f"model.hf_path={hf_path!r}"):
        try:
            return AutoConfig.from_pretrained(hf_path, trust_remote_code=False)
        except (OSError, ValueError) as error:
            what = (
                "has no readable config.json" if Path(hf_path).is_dir() else "is neither a local folder nor reachable"
            )
            raise ConfigError(
                f"model.hf_path={hf_path!r} {what}: give a folder in Hugging Face format or a hub id ({error})"
            ) from error


def read_architecture(hf_config: Any) -> Architecture:
    """The architecture of a Hugging Face config.

    Raises ConfigError for a family or a feature that isn't supported, naming it and what is.
    """
    family = family_of(hf_config.model_type)
    _refuse_unsupported_features(hf_config)
    head_dim = getattr(hf_config, "head_dim", None) or hf_config.hidden_size // hf_config.num_attention_heads
    return Architecture(
        family=hf_config.model_type,
        num_layers=hf_config.num_hidden_layers,
        hidden_size=hf_config.hidden_size,
        ffn_hidden_size=hf_config.intermediate_size,
        num_attention_heads=hf_config.num_attention_heads,
        num_query_groups=hf_config.num_key_value_heads,
        head_dim=head_dim,
        vocab_size=hf_config.vocab_size,
        max_position_embeddings=hf_config.max_position_embeddings,
        norm_epsilon=hf_config.rms_norm_eps,
        qkv_bias=family.qkv_bias and bool(getattr(hf_config, "qkv_bias", True)),
        qk_norm=family.qk_norm,
        tied_embeddings=bool(hf_config.tie_word_embeddings),
        initializer_range=getattr(hf_config, "initializer_range", 0.02),
        rotary_inv_freq=_rotary_inv_freq(hf_config, head_dim),
        mixture=_mixture(hf_config, family),
    )


def _mixture(hf_config: Any, family: Family) -> MixtureOfExperts | None:
    if family.experts is None:
        return None
    step = getattr(hf_config, "decoder_sparse_step", 1)
    dense = getattr(hf_config, "mlp_only_layers", None) or ()
    layers = [
        layer not in dense and (layer + 1) % step == 0 and hf_config.num_experts > 0
        for layer in range(hf_config.num_hidden_layers)
    ]
    if not any(layers):
        return None
    normalizes = bool(hf_config.norm_topk_prob) if family.normalizes_topk is None else family.normalizes_topk
    if normalizes and hf_config.num_experts_per_tok == 1:
        raise ConfigError(
            f"the {hf_config.model_type} config routes to one expert whose probability is made 1: "
            "its router gets no gradient, which is not supported"
        )
    return MixtureOfExperts(
        num_experts=hf_config.num_experts,
        num_experts_per_token=hf_config.num_experts_per_tok,
        ffn_hidden_size=getattr(hf_config, "moe_intermediate_size", None) or hf_config.intermediate_size,
        shared_ffn_hidden_size=hf_config.shared_expert_intermediate_size if family.experts.shared else None,
        normalizes_topk=normalizes,
        aux_loss_coeff=hf_config.router_aux_loss_coef,
        layers=layers,
    )


def _refuse_unsupported_features(hf_config: Any) -> None:
    window = getattr(hf_config, "sliding_window", None)
    layer_types = getattr(hf_config, "layer_types", None)
    if layer_types is None:  # a family without the field slides in every layer; a window as long as all is none
        slides = bool(window) and window < hf_config.max_position_embeddings
    else:
        slides = "sliding_attention" in layer_types
    refused = {
        "attention_bias": bool(getattr(hf_config, "attention_bias", False)),
        "mlp_bias": bool(getattr(hf_config, "mlp_bias", False)),
        "sliding-window attention": slides,
        f"hidden_act={hf_config.hidden_act!r} (only 'silu')": hf_config.hidden_act != "silu",
    }
    found = [name for name, present in refused.items() if present]
    if found:
        raise ConfigError(f"the {hf_config.model_type} config uses {', '.join(found)}, which is not supported")


def _rotary_inv_freq(hf_config: Any, head_dim: int) -> torch.Tensor:
    parameters = hf_config.rope_parameters
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        return 1.0 / (parameters["rope_theta"] ** exponents)
    if kind not in ("linear", "llama3"):
        raise ConfigError(f"rope_type {kind!r} is not supported; supported are default, linear and llama3")
    inv_freq, _ = ROPE_INIT_FUNCTIONS[kind](hf_config, torch.device("cpu"))
    return inv_freq.float()
