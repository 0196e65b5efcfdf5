"""Mixtures of experts: the table against what transformers writes, fused experts, names, and what is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MistralConfig, MixtralConfig, Qwen2MoeConfig, Qwen3MoeConfig

from sppo_megatron.hf.hf_config import read_architecture
from sppo_megatron.hf.hf_model import open_weights
from sppo_megatron.hf.load import check_names_and_shapes, load_parameters
from sppo_megatron.hf.mapping import (
    canonical_name,
    expert_index,
    hf_shapes,
    parameter_layouts,
    with_expert_index,
)

SIZES = {
    "num_hidden_layers": 3,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 37,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
}
CONFIGS = {
    "mixtral": lambda **kw: MixtralConfig(**SIZES | {"num_local_experts": 4} | kw),
    "qwen2-moe": lambda **kw: Qwen2MoeConfig(
        **SIZES | {"num_experts": 6, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 20} | kw
    ),
    "qwen3-moe": lambda **kw: Qwen3MoeConfig(**SIZES | {"num_experts": 4, "moe_intermediate_size": 12} | kw),
    "qwen3-moe-with-dense-layers": lambda **kw: Qwen3MoeConfig(
        **SIZES | {"num_experts": 4, "moe_intermediate_size": 12, "decoder_sparse_step": 2, "head_dim": 8} | kw
    ),
    "qwen2-moe-without-bias": lambda **kw: Qwen2MoeConfig(
        **SIZES
        | {"num_experts": 4, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 8, "qkv_bias": False}
        | kw
    ),
}


@pytest.fixture(scope="module", params=CONFIGS)
def saved(request, tmp_path_factory):
    """(config, folder by expert, folder with fused experts), both written by transformers."""
    torch.manual_seed(0)
    config = CONFIGS[request.param]()
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    path = tmp_path_factory.mktemp("experts")
    model.save_pretrained(path / "by-expert")
    model.save_pretrained(path / "fused", save_original_format=False)
    return config, path / "by-expert", path / "fused"


def layouts_of(config):
    architecture = read_architecture(config)
    return parameter_layouts(architecture, architecture.padded_vocab_size(8, 1))


def test_names_and_shapes_are_those_that_transformers_writes(saved):
    config, folder, _ = saved
    stored = {name: tuple(tensor.shape) for name, tensor in load_file(folder / "model.safetensors").items()}
    assert hf_shapes(layouts_of(config)) == stored


@pytest.mark.parametrize("tp_size", [1, 2, 4])
def test_fused_experts_give_the_same_shards(saved, tp_size):
    config, by_expert, fused = saved
    layouts, architecture = layouts_of(config), read_architecture(config)
    tensors, others = open_weights(by_expert, architecture), open_weights(fused, architecture)
    assert "model.layers.1.mlp.experts.gate_up_proj" in load_file(fused / "model.safetensors")
    check_names_and_shapes(layouts, others.shapes())
    for name, layout in layouts.items():
        for rank in range(tp_size):
            one, other = (
                layout.shard([opened.source(hf_name) for hf_name in layout.hf_names], rank, tp_size)
                for opened in (tensors, others)
            )
            assert torch.equal(one, other), name


def test_experts_have_their_own_tensor_parallel_size(saved):
    config, folder, _ = saved
    layouts, tensors = layouts_of(config), open_weights(folder, read_architecture(config))
    stored = load_file(folder / "model.safetensors")
    layer = "decoder.layers.1.mlp."
    expert = layouts[f"{layer}experts.local_experts.3.linear_fc2.weight"]
    down = stored[expert.hf_names[0]]
    parameters = {
        f"{layer}experts.local_experts.3.linear_fc2.weight": torch.zeros(16, down.shape[1]),
        "decoder.layers.1.self_attention.linear_proj.weight": torch.zeros(
            layouts["decoder.layers.1.self_attention.linear_proj.weight"].shapes[0][0],
            layouts["decoder.layers.1.self_attention.linear_proj.weight"].shapes[0][1] // 2,
        ),
    }
    load_parameters(parameters.items(), layouts, tensors, tp_rank=1, tp_size=2, expert_tp=(0, 1))
    whole, half = parameters.values()
    assert torch.equal(whole, down)
    assert torch.equal(half, stored["model.layers.1.self_attn.o_proj.weight"][:, half.shape[1] :])


def test_one_expert_too_few_and_one_too_many_are_named(saved):
    config, _, _ = saved
    layouts = layouts_of(config)
    shapes = hf_shapes(layouts)
    last = next(name for name in shapes if ".layers.1." in name and ".experts.3." in name)
    extra = last.replace(".experts.3.", ".experts.9.")
    shapes[extra] = shapes.pop(last)
    with pytest.raises(ValueError, match=r"does not fit its config\.json") as raised:
        check_names_and_shapes(layouts, shapes)
    assert f"missing: {last}" in str(raised.value) and f"unexpected: {extra}" in str(raised.value)


def test_names_grouped_by_transformer_engine():
    local = "decoder.layers.7.mlp.experts.local_experts.12.linear_fc1.weight"
    grouped = "decoder.layers.7.mlp.experts.linear_fc1.weight12"
    assert canonical_name(grouped) == canonical_name(local) == local
    assert expert_index(grouped) == expert_index(local) == 12
    assert with_expert_index(grouped, 60) == local.replace(".12.", ".60.")
    for other in ("mlp.router.weight", "mlp.shared_experts.linear_fc1.weight", "mlp.linear_fc2.weight"):
        assert expert_index(f"decoder.layers.7.{other}") is None
        assert canonical_name(f"decoder.layers.7.{other}") == f"decoder.layers.7.{other}"


def test_what_is_read_from_the_configs():
    mixtral = read_architecture(CONFIGS["mixtral"](router_aux_loss_coef=0.5)).mixture
    assert mixtral is not None
    assert (mixtral.num_experts, mixtral.num_experts_per_token, mixtral.ffn_hidden_size) == (4, 2, 24)
    assert mixtral.normalizes_topk and mixtral.aux_loss_coeff == 0.5 and mixtral.shared_ffn_hidden_size is None
    qwen = read_architecture(CONFIGS["qwen2-moe"](mlp_only_layers=[1], norm_topk_prob=True)).mixture
    assert qwen is not None
    assert (qwen.layers, qwen.normalizes_topk, qwen.shared_ffn_hidden_size) == ([True, False, True], True, 20)
    assert not read_architecture(CONFIGS["qwen2-moe"]()).mixture.normalizes_topk
    assert read_architecture(CONFIGS["qwen3-moe-with-dense-layers"]()).mixture.layers == [False, True, False]
    assert read_architecture(CONFIGS["qwen3-moe"](mlp_only_layers=[0, 1, 2])).mixture is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CONFIGS["mixtral"](num_experts_per_tok=1), "routes to one expert whose probability is made 1"),
        (CONFIGS["qwen2-moe"](layer_types=["chunked_attention"] * 3), "layers of chunked_attention"),
    ],
)
def test_refused_by_name(config, message):
    with pytest.raises(ValueError, match=message):
        read_architecture(config)


def test_a_window_as_long_as_the_context_is_none():
    sizes = {name: value for name, value in SIZES.items() if name != "num_experts_per_tok"}
    assert read_architecture(MistralConfig(**sizes | {"sliding_window": 64})).windows == []
    assert read_architecture(MistralConfig(**sizes | {"sliding_window": None})).windows == []
    assert read_architecture(CONFIGS["mixtral"](sliding_window=32)).windows == [32] * 3
