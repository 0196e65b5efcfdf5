"""The table that ties Megatron parameter names to Hugging Face tensors, for dense decoders.

Names are global: layers are numbered over the whole model, whatever pipeline stage holds them. Transformer Engine fuses
a norm into the linear layer after it, so a norm has two Megatron names; both stand in the table.
"""

from __future__ import annotations

from collections.abc import Mapping

from sppo_megatron.conversion.architecture import Architecture
from sppo_megatron.conversion.layouts import GatedMlp, Layout, QueryKeyValue, Replicated, RowParallel, Vocabulary

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT_LAYER = "output_layer.weight"

# Transformer Engine's name of a norm -> the name in Megatron's local layers.
FUSED_NORM_NAMES = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}


def parameter_layouts(architecture: Architecture, padded_vocab_size: int) -> dict[str, Layout]:
    """Every parameter of the whole model, by its global name in Megatron's local layers, in the model's order.

    With tied embeddings there is no output layer: the embedding's entry serves both.
    """
    a = architecture
    vocabulary = (a.vocab_size, a.hidden_size)
    layouts: dict[str, Layout] = {EMBEDDING: Vocabulary("model.embed_tokens.weight", vocabulary, padded_vocab_size)}
    for layer in range(a.num_layers):
        layouts |= _layer_layouts(a, f"decoder.layers.{layer}.", f"model.layers.{layer}.")
    layouts["decoder.final_layernorm.weight"] = Replicated("model.norm.weight", (a.hidden_size,))
    if not a.tied_embeddings:
        layouts[OUTPUT_LAYER] = Vocabulary("lm_head.weight", vocabulary, padded_vocab_size)
    return layouts


def canonical_name(megatron_name: str) -> str:
    """The name in Megatron's local layers of a parameter that Transformer Engine may have fused."""
    for fused, local in FUSED_NORM_NAMES.items():
        if megatron_name.endswith(fused):
            return megatron_name.removesuffix(fused) + local
    return megatron_name


def hf_shapes(layouts: Mapping[str, Layout]) -> dict[str, tuple[int, ...]]:
    """Every Hugging Face tensor of the model with its shape, in the model's order."""
    return {
        name: shape for layout in layouts.values() for name, shape in zip(layout.hf_names, layout.shapes, strict=True)
    }


def _layer_layouts(a: Architecture, megatron: str, hf: str) -> dict[str, Layout]:
    attention, mlp = hf + "self_attn.", hf + "mlp."

    def qkv(kind: str, hidden_size: int | None) -> QueryKeyValue:
        names = (f"{attention}q_proj.{kind}", f"{attention}k_proj.{kind}", f"{attention}v_proj.{kind}")
        return QueryKeyValue(names, a.num_attention_heads, a.num_query_groups, a.head_dim, hidden_size)

    heads = a.num_attention_heads * a.head_dim
    layouts: dict[str, Layout] = {
        megatron + "input_layernorm.weight": Replicated(hf + "input_layernorm.weight", (a.hidden_size,)),
        megatron + "self_attention.linear_qkv.weight": qkv("weight", a.hidden_size),
    }
    if a.qkv_bias:
        layouts[megatron + "self_attention.linear_qkv.bias"] = qkv("bias", None)
    if a.qk_norm:
        for name in ("q", "k"):
            norm = Replicated(f"{attention}{name}_norm.weight", (a.head_dim,))
            layouts[f"{megatron}self_attention.{name}_layernorm.weight"] = norm
    return layouts | {
        megatron + "self_attention.linear_proj.weight": RowParallel(
            attention + "o_proj.weight", (a.hidden_size, heads)
        ),
        megatron + "pre_mlp_layernorm.weight": Replicated(hf + "post_attention_layernorm.weight", (a.hidden_size,)),
        megatron + "mlp.linear_fc1.weight": GatedMlp(
            mlp + "gate_proj.weight", mlp + "up_proj.weight", (a.ffn_hidden_size, a.hidden_size)
        ),
        megatron + "mlp.linear_fc2.weight": RowParallel(mlp + "down_proj.weight", (a.hidden_size, a.ffn_hidden_size)),
    }
