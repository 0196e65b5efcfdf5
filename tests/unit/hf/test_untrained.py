"""Tensors that are no part of the policy: named, never trained, exported as they were."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from sppo_megatron.hf.hf_config import read_architecture
from sppo_megatron.hf.hf_model import open_hf_model, open_weights
from sppo_megatron.hf.load import check_names_and_shapes
from sppo_megatron.hf.mapping import parameter_layouts
from sppo_megatron.hf.untrained import untrained_names, untrained_tensors
from tests.distributed.layouts import models

BEYOND = "model.layers.4."  # the models have 4 layers


@pytest.fixture
def folder(tmp_path):
    """A GLM-4.5 with a layer that predicts the token after the next."""
    models.make_model("glm4-moe", tmp_path)
    file = tmp_path / "model.safetensors"
    extra = {f"{BEYOND}eh_proj.weight": torch.randn(3, 5), f"{BEYOND}mlp.experts.0.up_proj.weight": torch.randn(2, 2)}
    save_file(load_file(file) | extra, file, metadata={"format": "pt"})
    return tmp_path


def test_the_policy_is_read_without_them(folder):
    architecture = open_hf_model(str(folder)).architecture
    layouts = parameter_layouts(architecture, architecture.vocab_size)
    weights = open_weights(folder, architecture)
    check_names_and_shapes(layouts, weights.shapes())
    stored = load_file(folder / "model.safetensors")
    kept = dict(untrained_tensors(folder, architecture))
    assert list(kept) == untrained_names(folder, architecture)
    assert kept.keys() == {name for name in stored if name.startswith(BEYOND)} and len(kept) == 2
    assert all(torch.equal(tensor, stored[name]) for name, tensor in kept.items())
    assert weights.shapes().keys() | kept.keys() == stored.keys()


def test_a_layer_before_the_end_is_never_one(folder):
    """Layer 40 or 14 of a larger model would match carelessly."""
    architecture = open_hf_model(str(folder)).architecture
    names = ["model.layers.4.a", "model.layers.40.a", "model.layers.14.a", "model.layers.3.a", "lm_head.weight"]
    file = folder / "model.safetensors"
    save_file({name: torch.zeros(1) for name in names}, file, metadata={"format": "pt"})
    assert untrained_names(folder, architecture) == ["model.layers.4.a"]


def test_other_families_have_none(tmp_path):
    save_file({"model.layers.4.a": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert untrained_names(tmp_path, read_architecture(LlamaConfig(num_hidden_layers=4))) == []
