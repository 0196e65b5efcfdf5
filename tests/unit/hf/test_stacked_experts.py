"""Experts in stacks, plain and in MXFP4: seen one at a time, and written again as they are published."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from sppo_megatron.hf.hf_checkpoint import SafetensorsFolder
from sppo_megatron.hf.hf_config import load_hf_config, read_architecture
from sppo_megatron.hf.hf_model import open_weights
from sppo_megatron.hf.load import check_names_and_shapes
from sppo_megatron.hf.mapping import parameter_layouts
from sppo_megatron.hf.mxfp4 import dequantize
from sppo_megatron.hf.save import save_hf_folder
from sppo_megatron.hf.stacked_experts import StackedExperts, stack_experts
from tests.distributed.layouts import models

EXPERTS, HIDDEN, FFN = 4, 32, 64
QUANTIZED = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}


def random_packed(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks with every byte, scales around those of weights."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
    return blocks, torch.randint(110, 130, shape, generator=generator, dtype=torch.uint8)


def test_dequantization_is_transformers() -> None:
    blocks, scales = random_packed(EXPERTS, 2 * FFN, HIDDEN // 32)
    assert len(blocks.unique()) == 256
    expected = convert_moe_packed_tensors(blocks, scales)  # [experts, in, out]
    found = torch.stack([dequantize(*of_expert).T for of_expert in zip(blocks, scales, strict=True)])
    assert found.dtype == expected.dtype == torch.bfloat16 and torch.equal(found, expected)


def test_the_extremes_of_scales() -> None:
    """The least and the largest power of two that bf16 holds beside the values."""
    blocks = torch.full((2, 16), 0x72, dtype=torch.uint8)  # 1 in the lower half, 6 in the upper
    found = dequantize(blocks, torch.tensor([1, 251], dtype=torch.uint8))
    assert found[:2].tolist() == [2.0**-126, 6 * 2.0**-126] and found[32:34].tolist() == [2.0**124, 6 * 2.0**124]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A model as gpt-oss is published: MXFP4 experts, their biases and the rest in bf16."""
    folder = models.make_model("gpt-oss", tmp_path / "mxfp4", hidden_size=HIDDEN, intermediate_size=FFN)
    config = load_hf_config(str(folder))
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    for layer in range(config.num_hidden_layers):
        experts = f"model.layers.{layer}.mlp.experts."
        for name, (rows, columns) in {"gate_up_proj": (2 * FFN, HIDDEN), "down_proj": (HIDDEN, FFN)}.items():
            del tensors[experts + name]
            blocks, scales = random_packed(config.num_local_experts, rows, columns // 32)
            tensors |= {f"{experts}{name}_blocks": blocks, f"{experts}{name}_scales": scales}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config.quantization_config = QUANTIZED
    config.save_pretrained(folder)
    return folder


def test_mxfp4_is_read_by_expert_and_written_plain(published: Path, tmp_path: Path) -> None:
    config = load_hf_config(str(published))
    architecture = read_architecture(config)
    layouts = parameter_layouts(architecture, architecture.padded_vocab_size(4, 1))
    tensors, stored = open_weights(published, architecture), load_file(published / "model.safetensors")
    check_names_and_shapes(layouts, tensors.shapes())

    def exported():
        for layout in layouts.values():
            sources = [tensors.source(name) for name in layout.hf_names]
            halves = [layout.shard(sources, rank, 2) for rank in (0, 1)]  # by slices
            yield from zip(layout.hf_names, layout.unshard(halves), strict=True)

    whole = {}
    for layout in layouts.values():
        shard = layout.shard([tensors.source(name) for name in layout.hf_names], 0, 1)
        whole |= dict(zip(layout.hf_names, layout.unshard([shard]), strict=True))
    assert all(torch.equal(tensor, whole[name]) for name, tensor in exported() if "experts" in name)
    save_hf_folder(tmp_path / "hf", iter(whole.items()), config)
    plain = load_file(tmp_path / "hf" / "model.safetensors")
    for name in ("gate_up_proj", "down_proj"):
        packed = (stored[f"model.layers.2.mlp.experts.{name}_{part}"] for part in ("blocks", "scales"))
        assert torch.equal(plain[f"model.layers.2.mlp.experts.{name}"], convert_moe_packed_tensors(*packed))
    assert torch.equal(plain["model.layers.1.self_attn.sinks"], stored["model.layers.1.self_attn.sinks"])
    assert "quantization_config" not in (tmp_path / "hf" / "config.json").read_text()
    assert not [name for name in plain if name.endswith(("_blocks", "_scales"))]


def test_blocks_without_scales(tmp_path: Path) -> None:
    blocks, _ = random_packed(EXPERTS, 2 * FFN, HIDDEN // 32)
    save_file({"model.layers.0.mlp.experts.gate_up_proj_blocks": blocks}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"gate_up_proj_blocks and no model.*gate_up_proj_scales: it is torn"):
        StackedExperts(SafetensorsFolder(tmp_path))


def test_another_quantization_is_refused() -> None:
    config = models.CONFIGS["gpt-oss"]()
    config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(ValueError, match="quantization_config of fp8: only mxfp4"):
        read_architecture(config)


def test_stacks_come_when_they_are_whole() -> None:
    tensors = {
        f"l.mlp.experts.{expert}.{name}": torch.full((2,), expert)
        for expert in (0, 1)
        for name in ("down_proj", "gate_up_proj_bias")
    }
    stream = stack_experts(iter([("a", torch.zeros(1)), *tensors.items(), ("b", torch.zeros(1))]), 2)
    found = dict(stream)
    assert list(found) == ["a", "l.mlp.experts.down_proj", "l.mlp.experts.gate_up_proj_bias", "b"]
    assert found["l.mlp.experts.down_proj"].tolist() == [[0, 0], [1, 1]]


def test_experts_that_do_not_come_are_noticed() -> None:
    with pytest.raises(AssertionError, match="are missing"):
        list(stack_experts(iter([("l.experts.0.down_proj", torch.zeros(2))]), 2))
    with pytest.raises(AssertionError, match="does not follow"):
        list(stack_experts(iter([("l.experts.1.down_proj", torch.zeros(2))]), 2))
