"""The table that ties Megatron parameter names to Hugging Face tensors.

Names are global: layers and experts are numbered over the whole model, whatever rank holds them. A parameter has one
name in Megatron's local layers, which the table uses, and may have another with Transformer Engine: it fuses a norm
into the linear layer after it and groups the experts of a rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sppo_megatron.hf.architecture import Architecture, LatentAttention, MixtureOfExperts
from sppo_megatron.hf.families import FAMILIES
from sppo_megatron.hf.families.family import LayerNames
from sppo_megatron.hf.tensor_layouts import (
    ColumnParallel,
    GatedMlp,
    InterleavedGatedMlp,
    QueryKeyValue,
    Replicated,
    RowParallel,
    TensorLayout,
    TransposedRowParallel,
    Vocabulary,
)

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT_LAYER = "output_layer.weight"
EXPERT_BIAS = "router.expert_bias"  # of a mixture's layer: a buffer, which no gradient reaches

# Transformer Engine's name of a norm -> the name in Megatron's local layers.
FUSED_NORM_NAMES = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}
_FUSED_LATENT_NORM_NAMES = {
    "self_attention.linear_q_up_proj.layer_norm_weight": "self_attention.q_layernorm.weight",
    "self_attention.linear_kv_up_proj.layer_norm_weight": "self_attention.kv_layernorm.weight",
}
# Transformer Engine's grouped experts: `weightN` is the weight of expert N.
_GROUPED_EXPERT = re.compile(r"\.mlp\.experts\.(linear_fc[12])\.(weight|bias)(\d+)$")
_EXPERT = re.compile(r"\.mlp\.experts\.local_experts\.(\d+)\.")


def parameter_layouts(architecture: Architecture, padded_vocab_size: int) -> dict[str, TensorLayout]:
    """Every parameter of the whole model, by its global name in Megatron's local layers, in the model's order.

    With tied embeddings there is no output layer: the embedding's entry serves both.
    """
    a = architecture
    vocabulary = (a.vocab_size, a.hidden_size)
    layouts: dict[str, TensorLayout] = {
        EMBEDDING: Vocabulary(a.prefix + "model.embed_tokens.weight", vocabulary, padded_vocab_size)
    }
    for layer in range(a.num_layers):
        layouts |= _layer_layouts(a, layer)
    layouts["decoder.final_layernorm.weight"] = Replicated(a.prefix + "model.norm.weight", (a.hidden_size,))
    if not a.tied_embeddings:
        layouts[OUTPUT_LAYER] = Vocabulary(a.prefix + "lm_head.weight", vocabulary, padded_vocab_size)
    return layouts


def canonical_name(megatron_name: str) -> str:
    """The name in Megatron's local layers of a parameter that Transformer Engine may have fused or grouped."""
    for fused, local in (FUSED_NORM_NAMES | _FUSED_LATENT_NORM_NAMES).items():
        if megatron_name.endswith(fused):
            return megatron_name.removesuffix(fused) + local
    return _GROUPED_EXPERT.sub(r".mlp.experts.local_experts.\3.\1.\2", megatron_name)


def expert_index(megatron_name: str) -> int | None:
    """Which expert of its layer a parameter belongs to (global, or local, as the name is); None outside of experts."""
    found = _EXPERT.search(canonical_name(megatron_name))
    return int(found[1]) if found else None


def with_expert_index(megatron_name: str, index: int) -> str:
    """The canonical name with another index of the expert."""
    return _EXPERT.sub(f".mlp.experts.local_experts.{index}.", canonical_name(megatron_name))


def hf_shapes(layouts: Mapping[str, TensorLayout]) -> dict[str, tuple[int, ...]]:
    """Every Hugging Face tensor of the model with its shape, in the model's order."""
    return {
        name: shape for layout in layouts.values() for name, shape in zip(layout.hf_names, layout.shapes, strict=True)
    }


def _layer_layouts(a: Architecture, layer: int) -> dict[str, TensorLayout]:
    megatron, hf, names = f"decoder.layers.{layer}.", f"{a.prefix}model.layers.{layer}.", FAMILIES[a.family].layer
    is_mixture = a.mixture is not None and a.mixture.layers[layer]
    layouts = {megatron + "input_layernorm.weight": _norm(a, hf + names.attention_norm)}
    layouts |= (_latent_layouts if a.latent else _attention_layouts)(a, megatron + "self_attention.", hf + "self_attn.")
    if names.attention_post_norm:
        layouts[megatron + "self_attention.linear_proj.post_norm.weight"] = _norm(a, hf + names.attention_post_norm)
    layouts[megatron + "pre_mlp_layernorm.weight"] = _norm(a, hf + names.mlp_norm)
    layouts |= (
        _mixture_layouts(a, megatron + "mlp.", hf, names) if is_mixture else _dense_layouts(a, megatron + "mlp.", hf)
    )
    if names.mlp_post_norm:
        layouts[megatron + "mlp.linear_fc2.post_norm.weight"] = _norm(a, hf + names.mlp_post_norm)
    return layouts


def _norm(a: Architecture, hf: str) -> TensorLayout:
    return Replicated(hf + ".weight", (a.hidden_size,))


def _attention_layouts(a: Architecture, megatron: str, hf: str) -> dict[str, TensorLayout]:
    def qkv(kind: str, hidden_size: int | None) -> QueryKeyValue:
        names = (f"{hf}q_proj.{kind}", f"{hf}k_proj.{kind}", f"{hf}v_proj.{kind}")
        return QueryKeyValue(names, a.num_attention_heads, a.num_query_groups, a.head_dim, hidden_size)

    layouts: dict[str, TensorLayout] = {megatron + "linear_qkv.weight": qkv("weight", a.hidden_size)}
    if a.qkv_bias:
        layouts[megatron + "linear_qkv.bias"] = qkv("bias", None)
    if a.qk_norm:
        for name in ("q", "k"):
            layouts[f"{megatron}{name}_layernorm.weight"] = Replicated(f"{hf}{name}_norm.weight", (a.head_dim,))
    if a.sinks:
        layouts[megatron + "core_attention.softmax_offset"] = ColumnParallel(hf + "sinks", (a.num_attention_heads,))
    if a.linear_biases:
        layouts[megatron + "linear_proj.bias"] = Replicated(hf + "o_proj.bias", (a.hidden_size,))
    heads = a.num_attention_heads * a.head_dim
    return layouts | {megatron + "linear_proj.weight": RowParallel(hf + "o_proj.weight", (a.hidden_size, heads))}


def _latent_layouts(a: Architecture, megatron: str, hf: str) -> dict[str, TensorLayout]:
    latent, heads = a.latent, a.num_attention_heads
    assert isinstance(latent, LatentAttention)
    query = heads * (latent.qk_dim + latent.rope_dim)
    key_value = heads * (latent.qk_dim + latent.v_dim)
    layouts: dict[str, TensorLayout]
    if latent.q_rank is None:
        layouts = {megatron + "linear_q_proj.weight": ColumnParallel(hf + "q_proj.weight", (query, a.hidden_size))}
    else:
        layouts = {
            megatron + "linear_q_down_proj.weight": ColumnParallel(
                hf + "q_a_proj.weight", (latent.q_rank, a.hidden_size)
            ),
            megatron + "linear_q_up_proj.weight": ColumnParallel(hf + "q_b_proj.weight", (query, latent.q_rank)),
            megatron + "q_layernorm.weight": Replicated(hf + "q_a_layernorm.weight", (latent.q_rank,)),
        }
    return layouts | {
        megatron + "linear_kv_down_proj.weight": ColumnParallel(
            hf + "kv_a_proj_with_mqa.weight", (latent.kv_rank + latent.rope_dim, a.hidden_size)
        ),
        megatron + "linear_kv_up_proj.weight": ColumnParallel(hf + "kv_b_proj.weight", (key_value, latent.kv_rank)),
        megatron + "kv_layernorm.weight": Replicated(hf + "kv_a_layernorm.weight", (latent.kv_rank,)),
        megatron + "linear_proj.weight": RowParallel(hf + "o_proj.weight", (a.hidden_size, heads * latent.v_dim)),
    }


def _gated_mlp(
    megatron: str, hf: tuple[str, str, str], hidden_size: int, ffn_hidden_size: int
) -> dict[str, TensorLayout]:
    """hf: the names of the gate, up and down projections."""
    gate, up, down = (f"{name}.weight" for name in hf)
    return {
        megatron + "linear_fc1.weight": GatedMlp(gate, up, (ffn_hidden_size, hidden_size)),
        megatron + "linear_fc2.weight": RowParallel(down, (hidden_size, ffn_hidden_size)),
    }


def _dense_layouts(a: Architecture, megatron: str, hf: str) -> dict[str, TensorLayout]:
    names = (hf + "mlp.gate_proj", hf + "mlp.up_proj", hf + "mlp.down_proj")
    return _gated_mlp(megatron, names, a.hidden_size, a.ffn_hidden_size)


def _stacked_expert(megatron: str, hf: str, hidden_size: int, ffn_hidden_size: int) -> dict[str, TensorLayout]:
    """One expert of a stack (see `stacked_experts`): matrices for x @ W, gate and up by turns, biases."""
    return {
        megatron + "linear_fc1.weight": InterleavedGatedMlp(hf + "gate_up_proj", (hidden_size, 2 * ffn_hidden_size)),
        megatron + "linear_fc1.bias": InterleavedGatedMlp(hf + "gate_up_proj_bias", (2 * ffn_hidden_size,)),
        megatron + "linear_fc2.weight": TransposedRowParallel(hf + "down_proj", (ffn_hidden_size, hidden_size)),
        megatron + "linear_fc2.bias": Replicated(hf + "down_proj_bias", (hidden_size,)),
    }


def _mixture_layouts(a: Architecture, megatron: str, hf: str, layer: LayerNames) -> dict[str, TensorLayout]:
    moe, names = a.mixture, layer.experts
    assert isinstance(moe, MixtureOfExperts) and names is not None
    block = hf + names.block + "."
    router = Replicated(f"{block}{names.router}.weight", (moe.num_experts, a.hidden_size))
    layouts: dict[str, TensorLayout] = {megatron + "router.weight": router}
    if moe.expert_bias:
        layouts[megatron + EXPERT_BIAS] = Replicated(f"{block}{names.router}.{names.bias}", (moe.num_experts,))
    if a.linear_biases:
        layouts[megatron + "router.bias"] = Replicated(f"{block}{names.router}.bias", (moe.num_experts,))
    for expert in range(moe.num_experts):
        ours, theirs = f"{megatron}experts.local_experts.{expert}.", f"{block}experts.{expert}."
        if names.stacked:
            layouts |= _stacked_expert(ours, theirs, a.hidden_size, moe.ffn_hidden_size)
            continue
        projections = (theirs + names.gate, theirs + names.up, theirs + names.down)
        layouts |= _gated_mlp(ours, projections, a.hidden_size, moe.ffn_hidden_size)
    if moe.shared_ffn_hidden_size is not None:
        ours, theirs = megatron + "shared_experts.", f"{block}{names.shared}."
        projections = (theirs + names.gate, theirs + names.up, theirs + names.down)
        layouts |= _gated_mlp(ours, projections, a.hidden_size, moe.shared_ffn_hidden_size)
        if moe.shared_gate:
            layouts[ours + "gate_weight"] = Replicated(f"{block}{names.shared_gate}.weight", (1, a.hidden_size))
    return layouts
