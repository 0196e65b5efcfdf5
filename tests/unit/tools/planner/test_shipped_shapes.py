"""Shapes are found by name, hub id or folder."""

from __future__ import annotations

import json
import math

import pytest
from transformers import Qwen2Config

from sppo_megatron.hf.mapping import hf_shapes, parameter_layouts
from sppo_planner.shipped_shapes import find_architecture


def test_by_name_and_by_hub_id():
    for model in ("Qwen2.5-7B", "Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b"):
        assert find_architecture(model).hidden_size == 3584
    assert find_architecture("meta-llama/Llama-3.1-70B-Instruct").num_layers == 80
    assert find_architecture("Qwen/Qwen3-30B-A3B-Base").mixture.num_experts == 128


def test_a_folder_is_read(tmp_path):
    Qwen2Config(num_hidden_layers=3).save_pretrained(tmp_path / "Qwen2.5-7B")
    assert find_architecture(str(tmp_path / "Qwen2.5-7B")).num_layers == 3
    (tmp_path / "Qwen2.5-7B" / "config.json").write_text(json.dumps({"model_type": "gemma"}))
    with pytest.raises(ValueError, match="'gemma' is not supported"):
        find_architecture(str(tmp_path / "Qwen2.5-7B"))


def test_an_unknown_one_names_what_there_is(tmp_path):
    with pytest.raises(ValueError, match=r"Llama-3\.1-70B, Llama-3\.1-8B, Meta-Llama-3-8B, Mistral-7B"):
        find_architecture(str(tmp_path))


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("Llama-3.1-70B", 70.55),
        ("Llama-3.1-8B", 8.03),
        ("Meta-Llama-3-8B", 8.03),
        ("Mistral-7B-Instruct-v0.2", 7.24),
        ("Qwen2.5-7B", 7.62),
        ("Qwen3-30B-A3B", 30.53),
        ("Qwen3-235B-A22B", 235.09),
        ("Gemma-3-27B", 27.01),
        ("GLM-4.5-Air", 106.85),
        ("DeepSeek-V3", 671.03),
    ],
)
def test_parameters_are_as_many_as_published(model, billions):
    """Without vision towers and layers that predict further tokens."""
    architecture = find_architecture(model)
    shapes = hf_shapes(parameter_layouts(architecture, architecture.vocab_size))
    assert sum(map(math.prod, shapes.values())) / 1e9 == pytest.approx(billions, abs=0.005)
