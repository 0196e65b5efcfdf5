"""The table against the state dicts of Hugging Face models and the parameter names of Megatron's local layers."""

from __future__ import annotations

import pytest
import torch

from sppo_megatron.hf.hf_config import read_architecture
from sppo_megatron.hf.mapping import canonical_name, hf_shapes, parameter_layouts


def layouts_of(config, divisible_by: int = 8, tp_size: int = 1):
    architecture = read_architecture(config)
    return parameter_layouts(architecture, architecture.padded_vocab_size(divisible_by, tp_size))


def test_names_and_shapes_are_those_of_the_state_dict(hf_model, stored):
    expected = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    shapes = hf_shapes(layouts_of(hf_model.config))
    assert shapes == expected
    assert next(iter(shapes)) == "model.embed_tokens.weight"  # in the model's order


def megatron_names(config) -> list[str]:
    layer = ["input_layernorm.weight", "self_attention.linear_qkv.weight"]
    layer += ["self_attention.linear_qkv.bias"] if config.model_type == "qwen2" else []
    if config.model_type == "qwen3":
        layer += ["self_attention.q_layernorm.weight", "self_attention.k_layernorm.weight"]
    layer += ["self_attention.linear_proj.weight", "pre_mlp_layernorm.weight"]
    layer += ["mlp.linear_fc1.weight", "mlp.linear_fc2.weight"]
    names = ["embedding.word_embeddings.weight"]
    names += [f"decoder.layers.{i}.{name}" for i in range(config.num_hidden_layers) for name in layer]
    names += ["decoder.final_layernorm.weight"]
    return names + ([] if config.tie_word_embeddings else ["output_layer.weight"])


def test_megatron_names(hf_model):
    assert list(layouts_of(hf_model.config)) == megatron_names(hf_model.config)


@pytest.mark.parametrize("tp_size", [1, 2, 4])
def test_the_whole_model_goes_there_and_back_bitwise(hf_model, stored, tp_size):
    """With 2 and with 1 key-value heads, so also on more ranks than those."""
    config = hf_model.config
    back = {}
    for layout in layouts_of(config, tp_size=tp_size).values():
        sources = [stored[name] for name in layout.hf_names]
        shards = [layout.shard(sources, rank, tp_size) for rank in range(tp_size)]
        assert len({shard.shape for shard in shards}) == 1
        back |= zip(layout.hf_names, layout.unshard(shards), strict=True)
    assert back.keys() == stored.keys()
    for name, tensor in stored.items():
        assert torch.equal(back[name], tensor), name


def test_norms_fused_by_transformer_engine():
    prefix = "decoder.layers.11."
    assert canonical_name(prefix + "self_attention.linear_qkv.layer_norm_weight") == prefix + "input_layernorm.weight"
    assert canonical_name(prefix + "mlp.linear_fc1.layer_norm_weight") == prefix + "pre_mlp_layernorm.weight"
    for name in ("self_attention.linear_qkv.weight", "self_attention.q_layernorm.weight", "input_layernorm.weight"):
        assert canonical_name(prefix + name) == prefix + name
