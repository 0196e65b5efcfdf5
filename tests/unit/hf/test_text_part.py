"""The text of models that take images: by its family's table, with the rest kept."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from sppo_megatron.hf.hf_config import read_architecture
from sppo_megatron.hf.hf_folder import stop_token_ids
from sppo_megatron.hf.hf_model import open_hf_model, open_weights
from sppo_megatron.hf.load import check_tensors
from sppo_megatron.hf.mapping import parameter_layouts
from sppo_megatron.hf.untrained import untrained_names
from tests.distributed.layouts import models


@pytest.mark.parametrize(("kind", "text"), models.TEXT_PARTS.items())
def test_every_tensor_is_the_texts_or_kept(kind, text, tmp_path):
    models.make_model(kind, tmp_path)
    architecture = open_hf_model(str(tmp_path)).architecture
    assert architecture.family == read_architecture(models.CONFIGS[text]()).family
    check_tensors(parameter_layouts(architecture, architecture.vocab_size), open_weights(tmp_path, architecture))
    stored, kept = load_file(tmp_path / "model.safetensors"), untrained_names(tmp_path, architecture)
    assert set(kept) == {name for name in stored if not name.startswith("language_model.")} and len(kept) > 5


def test_a_layer_that_predicts_more_is_kept_too(tmp_path):
    architecture = read_architecture(models.CONFIGS["kimi-k25"]())
    names = {f"language_model.model.layers.{layer}.a": None for layer in (3, 4, 40)}
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "model.safetensors")
    assert untrained_names(tmp_path, architecture) == ["language_model.model.layers.4.a"]


def test_fields_of_the_text_are_checked():
    config = models.CONFIGS["mistral3"]()
    config.text_config.logit_scale = 0.5
    with pytest.raises(ValueError, match=r"ministral3 config has fields that are not known here.*logit_scale"):
        read_architecture(config)


def test_another_text_is_refused():
    config = models.CONFIGS["mistral3"]()
    config.text_config = models.CONFIGS["qwen3"]()
    with pytest.raises(ValueError, match="the text of the mistral3 config is of qwen3: not supported"):
        read_architecture(config)


def test_a_head_that_is_tied_in_one_place_alone():
    config = models.CONFIGS["mistral3"]()
    config.tie_word_embeddings = True
    with pytest.raises(ValueError, match="tie_word_embeddings=True and False in text_config"):
        read_architecture(config)


def test_responses_end_where_the_text_does():
    assert stop_token_ids(models.CONFIGS["mistral3"](), None, None) == {1}
