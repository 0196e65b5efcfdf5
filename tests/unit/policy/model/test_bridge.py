"""Families that `hf` doesn't map, if megatron-bridge isn't installed. With it: tests/distributed/bridge."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from transformers import GemmaConfig

from sppo_megatron.config import Config
from sppo_megatron.errors import ConfigError
from sppo_megatron.train.inputs import open_model


@pytest.mark.skipif(importlib.util.find_spec("megatron.bridge") is not None, reason="megatron-bridge is installed")
def test_the_message_names_our_families_and_what_to_install(tmp_path: Path) -> None:
    message = (
        r"'gemma' is not among .* \(llama, mistral, .*\); .* pip install --no-deps megatron-bridge, and Transformer"
    )
    with pytest.raises(ValueError, match=message):
        open_model(Config(), tmp_path, GemmaConfig())


def test_random_weights_are_for_our_own_families(tmp_path: Path) -> None:
    run = Config()
    run.model.init = "random"
    with pytest.raises(ConfigError, match=r"model.init=random with a gemma model: only llama, .* set model.init=hf"):
        open_model(run, tmp_path, GemmaConfig())
