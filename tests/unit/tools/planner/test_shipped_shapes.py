"""Shapes are found by name, hub id or folder."""

from __future__ import annotations

import json

import pytest
from transformers import Qwen2Config

from sppo_planner.shipped_shapes import find_architecture, shipped_models


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
    with pytest.raises(ValueError, match=r"Llama-3\.1-70B, Llama-3\.1-8B, Qwen2\.5-1\.5B"):
        find_architecture(str(tmp_path))
    assert len(shipped_models()) == 6
