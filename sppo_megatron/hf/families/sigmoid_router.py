"""The mixture of experts of DeepSeek-V3 and GLM-4.5: sigmoid scores, a bias for the choice, a shared expert."""

from __future__ import annotations

import re
from typing import Any

from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.architecture import Architecture, MixtureOfExperts
from sppo_megatron.hf.families.family import ExpertNames, LayerNames
from sppo_megatron.hf.families.fields import names

FIELDS = names(
    """n_routed_experts num_local_experts num_experts_per_tok moe_intermediate_size n_shared_experts n_group topk_group
    routed_scaling_factor first_k_dense_replace num_nextn_predict_layers"""
)
# Megatron's sigmoid scores of the chosen experts are always made to sum to 1.
ONLY: dict[str, tuple[Any, ...]] = {"norm_topk_prob": (True,)}
LAYER = LayerNames(experts=ExpertNames(shared="shared_experts", bias="e_score_correction_bias"))


def read_sigmoid_mixture(hf_config: Any) -> MixtureOfExperts | None:
    """Raises ConfigError for groups that Megatron-Core would choose by another number of experts."""
    layers = [layer >= hf_config.first_k_dense_replace for layer in range(hf_config.num_hidden_layers)]
    if not any(layers):
        return None
    topk, groups = hf_config.num_experts_per_tok, hf_config.n_group or 1
    if groups > 1 and topk != 2 * hf_config.topk_group:
        raise ConfigError(
            f"the {hf_config.model_type} config rates groups of experts by the best two of each, Megatron-Core by "
            f"the best num_experts_per_tok / topk_group = {topk} / {hf_config.topk_group}: only 2 is supported"
        )
    if topk == 1:
        raise ConfigError(
            f"the {hf_config.model_type} config routes to one expert, whose probability Megatron-Core does not make 1: "
            "not supported"
        )
    return MixtureOfExperts(
        num_experts=hf_config.n_routed_experts,
        num_experts_per_token=topk,
        ffn_hidden_size=hf_config.moe_intermediate_size,
        shared_ffn_hidden_size=hf_config.moe_intermediate_size * hf_config.n_shared_experts or None,
        normalizes_topk=True,
        aux_loss_coeff=0.0,
        layers=layers,
        score_function="sigmoid",
        num_groups=groups if groups > 1 else None,
        group_topk=hf_config.topk_group if groups > 1 else None,
        scaling_factor=float(hf_config.routed_scaling_factor),
        expert_bias=True,
    )


def layers_beyond(architecture: Architecture) -> str:
    """Layers after the last predict more than one token. They are no part of the policy and stay as they are."""
    return rf"model\.layers\.{re.escape(str(architecture.num_layers))}\..*"
