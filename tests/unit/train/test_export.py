"""The export is tried before the first step: all of it but the weights."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoConfig, Qwen2Config

from sppo_megatron.config import Config
from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.side_files import write_side_files
from sppo_megatron.train.build import check_export

# transformers reads it, and refuses to save it: temperature without do_sample.
GENERATION = '{"do_sample": false, "temperature": 0.6, "top_p": 0.95, "eos_token_id": [1, 2]}\n'


@pytest.fixture
def inputs(tmp_path: Path) -> SimpleNamespace:
    Qwen2Config(num_hidden_layers=1).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(GENERATION)
    return SimpleNamespace(folder=tmp_path, hf_config=AutoConfig.from_pretrained(tmp_path))


def test_side_files_that_transformers_would_not_save_are_copied(inputs: SimpleNamespace, tmp_path: Path) -> None:
    check_export(Config(), inputs)
    write_side_files(tmp_path / "hf", inputs.hf_config, inputs.folder)
    assert (tmp_path / "hf" / "generation_config.json").read_text() == GENERATION
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["num_hidden_layers"] == 1


def test_a_config_that_cannot_be_written_is_found_before_training(inputs: SimpleNamespace) -> None:
    inputs.hf_config.extra_field = {1, 2}  # no JSON
    with pytest.raises(ConfigError, match=rf"could not be exported .*TypeError.*; fix the files in {inputs.folder}"):
        check_export(Config(), inputs)
