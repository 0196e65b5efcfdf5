"""Models of a stranger that come with code of their own: it isn't run, and the message says what it is about."""

from __future__ import annotations

import json
import os
import pty
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForSequenceClassification

from sppo_megatron.config import RewardModelConfig
from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.hf_config import load_hf_config
from sppo_megatron.hf.tokenizer import load_tokenizer
from sppo_megatron.rewards.sequence_classifier import SequenceClassifier
from tests.malicious import CODE, Touch

MAP = {"AutoConfig": "code.C", "AutoModelForSequenceClassification": "code.M", "AutoTokenizer": ["code.T", "code.T"]}
SIZES = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a model type that only its own code knows."""
    (tmp_path / "code.py").write_text(CODE.format(str(tmp_path / "marker")) + "class C: ...\nclass T: ...\nM = T\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "stranger", "auto_map": MAP, **SIZES}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T", "auto_map": MAP}))
    return tmp_path


def reward_model(folder: Path) -> SequenceClassifier:
    return SequenceClassifier(RewardModelConfig(path=str(folder), dtype="fp32"))


@pytest.mark.parametrize(
    ("load", "what"),
    [
        (lambda folder: load_hf_config(str(folder)), "model.hf_path="),
        (load_tokenizer, "the tokenizer of "),
        (reward_model, "reward.model.path="),
    ],
)
def test_code_is_refused_by_name(folder: Path, load: Callable[[Path], Any], what: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{what}.*comes with Python code of its own.*trust_remote_code is off"):
        load(folder)
    assert not (folder / "marker").exists()


def test_nobody_is_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would ask at the terminal, and a yes that lies there runs the code."""
    ours, theirs = pty.openpty()
    os.write(ours, b"y\n")
    with os.fdopen(theirs) as terminal, os.fdopen(ours, "wb"):
        monkeypatch.setattr("sys.stdin", terminal)
        with pytest.raises(ConfigError, match="trust_remote_code is off"):
            load_hf_config(str(folder))
    assert not (folder / "marker").exists()


def test_a_known_model_is_read_without_its_code(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "auto_map": MAP, **SIZES}))
    assert isinstance(load_hf_config(str(folder)), Qwen2Config)
    assert not (folder / "marker").exists()


def test_pickled_weights_of_a_reward_model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """pytorch_model.bin is a pickle."""
    config = Qwen2Config(num_labels=1, num_key_value_heads=1, pad_token_id=0, **SIZES)
    config.save_pretrained(folder)
    state = Qwen2ForSequenceClassification(config).state_dict()
    torch.save(state | {"model.norm.weight": Touch(folder / "marker")}, folder / "pytorch_model.bin")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    tiny = {"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}
    (folder / "tokenizer.json").write_text(json.dumps(tiny))
    assert AutoTokenizer.from_pretrained(folder)("a")["input_ids"] == [0]
    with pytest.raises(
        ConfigError,
        match="holds a pickle that is more than tensors, which is never run: give its weights as safetensors",
    ):
        reward_model(folder)
    assert not (folder / "marker").exists()
