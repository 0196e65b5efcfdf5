"""Filling local parameters, and what is said if a checkpoint does not fit."""

from __future__ import annotations

import re

import pytest
import torch

from sppo_megatron.hf.hf_config import read_architecture
from sppo_megatron.hf.load import check_names_and_shapes, layout_of, load_parameters
from sppo_megatron.hf.mapping import FUSED_NORM_NAMES, hf_shapes, parameter_layouts

QKV = "decoder.layers.0.self_attention.linear_qkv.weight"


class InMemory:
    """Named tensors; remembers which were read."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        self.tensors, self.read = tensors, set()

    def shapes(self):
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def source(self, name: str):
        self.read.add(name)
        return self.tensors[name]


def layouts_of(config, tp_size: int = 1):
    architecture = read_architecture(config)
    return parameter_layouts(architecture, architecture.padded_vocab_size(8, tp_size))


def tensors_of(layouts) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in hf_shapes(layouts).items()}


def expected_shards(layouts, tensors, rank: int, tp_size: int) -> dict[str, torch.Tensor]:
    return {
        name: layout.shard([tensors[hf_name] for hf_name in layout.hf_names], rank, tp_size)
        for name, layout in layouts.items()
    }


@pytest.mark.parametrize("tp_size", [1, 2])
@pytest.mark.parametrize("name", ["qwen2-tied", "qwen3", "llama"])
def test_every_rank_gets_its_shard(make_config, name, tp_size):
    layouts = layouts_of(make_config(name), tp_size)
    tensors = tensors_of(layouts)
    for rank in range(tp_size):
        expected = expected_shards(layouts, tensors, rank, tp_size)
        local = {name: torch.full_like(shard, torch.nan) for name, shard in expected.items()}
        pointers = {name: parameter.data_ptr() for name, parameter in local.items()}
        load_parameters(local.items(), layouts, InMemory(tensors), tp_rank=rank, tp_size=tp_size)
        for name, shard in expected.items():
            assert torch.equal(local[name], shard), name
            assert local[name].data_ptr() == pointers[name]


def test_a_pipeline_stage_reads_its_layers_alone(make_config):
    layouts = layouts_of(make_config("llama"))
    source = InMemory(tensors_of(layouts))
    local = {
        name: shard for name, shard in expected_shards(layouts, source.tensors, 0, 1).items() if "layers.1" in name
    }
    load_parameters(local.items(), layouts, source, tp_rank=0, tp_size=1)
    assert source.read and all(name.startswith("model.layers.1.") for name in source.read)


def test_parameters_keep_their_dtype_and_require_grad(make_config):
    layouts = layouts_of(make_config("llama"))
    tensors = tensors_of(layouts)
    parameter = torch.nn.Parameter(torch.zeros(32, 16, dtype=torch.bfloat16))
    load_parameters([(QKV, parameter)], layouts, InMemory(tensors), tp_rank=0, tp_size=1)
    assert torch.equal(parameter, expected_shards(layouts, tensors, 0, 1)[QKV].bfloat16())
    assert parameter.requires_grad and parameter.is_leaf


def test_fused_norms_and_a_tied_output_layer(make_config):
    layouts = layouts_of(make_config("qwen2-tied"))
    tensors = tensors_of(layouts)
    prefix = "decoder.layers.1."
    local = {prefix + name: torch.zeros(16) for name in FUSED_NORM_NAMES}
    local["output_layer.weight"] = torch.zeros(40, 16)
    load_parameters(local.items(), layouts, InMemory(tensors), tp_rank=0, tp_size=1)
    qkv_norm, mlp_norm, head = local.values()
    assert torch.equal(qkv_norm, tensors["model.layers.1.input_layernorm.weight"])
    assert torch.equal(mlp_norm, tensors["model.layers.1.post_attention_layernorm.weight"])
    assert torch.equal(head[:37], tensors["model.embed_tokens.weight"])
    assert (head[37:] == 0).all()


def test_a_parameter_the_table_does_not_know(make_config):
    layouts = layouts_of(make_config("llama"))
    assert layout_of("output_layer.weight", layouts).hf_names == ("lm_head.weight",)
    with pytest.raises(ValueError, match=r"decoder\.layers\.0\.mlp\.router\.weight.*doesn't know"):
        layout_of("decoder.layers.0.mlp.router.weight", layouts)


def test_a_local_shape_that_differs(make_config):
    layouts = layouts_of(make_config("llama"))
    with pytest.raises(ValueError, match=re.escape(f"{QKV} is [16, 16] here, its shard is [32, 16]")):
        load_parameters([(QKV, torch.zeros(16, 16))], layouts, InMemory(tensors_of(layouts)), tp_rank=0, tp_size=1)


class TestWhatDoesNotFit:
    @pytest.fixture
    def layouts(self, make_config):
        return layouts_of(make_config("llama"))

    @pytest.fixture
    def shapes(self, layouts):
        return dict(hf_shapes(layouts))

    def test_what_fits_passes(self, layouts, shapes):
        check_names_and_shapes(layouts, shapes)

    def test_everything_is_named_at_once(self, layouts, shapes):
        del shapes["model.norm.weight"]
        shapes["model.layers.0.self_attn.q_proj.bias"] = (16,)
        shapes["model.layers.1.mlp.up_proj.weight"] = (24, 15)
        with pytest.raises(ValueError) as raised:
            check_names_and_shapes(layouts, shapes)
        message = str(raised.value)
        assert "missing: model.norm.weight;" in message
        assert "unexpected: model.layers.0.self_attn.q_proj.bias;" in message
        assert "wrong shape: model.layers.1.mlp.up_proj.weight is [24, 15], the config says [24, 16]" in message

    def test_nothing_is_loaded_where_anything_is_wrong(self, layouts):
        tensors = tensors_of(layouts)
        del tensors["model.norm.weight"]
        parameter = torch.zeros(32, 16)
        with pytest.raises(ValueError, match=r"missing: model\.norm\.weight"):
            load_parameters([(QKV, parameter)], layouts, InMemory(tensors), tp_rank=0, tp_size=1)
        assert (parameter == 0).all()

    def test_the_first_ten_and_a_count(self, layouts, shapes):
        names = [name for name in shapes if "layers" in name]
        with pytest.raises(ValueError, match=rf"and {len(names) - 10} more") as raised:
            check_names_and_shapes(layouts, {name: shape for name, shape in shapes.items() if name not in names})
        assert all(name in str(raised.value) for name in names[:10])
        assert names[10] not in str(raised.value)

    def test_derived_buffers_are_ignored(self, layouts, shapes):
        shapes["model.layers.0.self_attn.rotary_emb.inv_freq"] = (2,)
        check_names_and_shapes(layouts, shapes)

    def test_a_head_beside_tied_embeddings_is_ignored(self, layouts, shapes, make_config):
        tied = layouts_of(make_config("qwen2-tied"))
        check_names_and_shapes(tied, {**hf_shapes(tied), "lm_head.weight": (37, 16)})
        del shapes["lm_head.weight"]
        with pytest.raises(ValueError, match=r"missing: lm_head\.weight"):
            check_names_and_shapes(layouts, shapes)
