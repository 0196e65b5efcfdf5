"""The folder beside its weights: where it is, tokenizer, generation config, end tokens."""

from __future__ import annotations

from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GenerationConfig, PreTrainedTokenizerFast

from sppo_megatron.hf.hf_folder import (
    load_generation_config,
    load_tokenizer,
    resolve_hf_folder,
    stop_token_ids,
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<end>", "a", "b"])}
    model = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", eos_token="<end>")


def no_download(*args, **kwargs):
    raise AssertionError("nothing should be fetched")


def test_a_folder_is_taken_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_download)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)  # reads like a hub id, and is there
    assert resolve_hf_folder(str(tmp_path)) == tmp_path
    assert (resolve_hf_folder("owner/name") / "x").parent.resolve() == (tmp_path / "owner" / "name").resolve()


@pytest.mark.parametrize("path", ["./nowhere/here", "../nowhere/here", "/nowhere", "~/here", "a/b/c", "nowhere"])
def test_a_path_is_no_hub_id(path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_download)
    with pytest.raises(ValueError, match=r"model\.hf_path=.* is no folder: give a folder .* or a hub id"):
        resolve_hf_folder(path)


def test_a_hub_id_is_fetched_with_weights_and_tokenizer(tmp_path, monkeypatch):
    asked = {}

    def download(name, allow_patterns):
        asked.update(name=name, patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_hf_folder("owner/name") == tmp_path
    assert asked["name"] == "owner/name"
    assert {"*.safetensors", "*.json", "*.jinja"} <= set(asked["patterns"])
    assert not any(pattern.endswith((".bin", ".pt", "*")) for pattern in asked["patterns"])


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("offline"), OSError("no route")])
def test_a_hub_id_that_can_not_be_fetched(monkeypatch, error):
    def download(name, allow_patterns):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ValueError, match=r"model\.hf_path='owner/name' is no local folder and could not be fetched"):
        resolve_hf_folder("owner/name")


def test_tokenizer(tmp_path):
    assert load_tokenizer(tmp_path) is None
    make_tokenizer().save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.convert_tokens_to_ids(["a", "b"]) == [2, 3]
    assert tokenizer.eos_token_id == 1


def test_generation_config(tmp_path):
    assert load_generation_config(tmp_path) is None
    GenerationConfig(eos_token_id=[4, 5]).save_pretrained(tmp_path)
    assert load_generation_config(tmp_path).eos_token_id == [4, 5]


@pytest.mark.parametrize(
    ("model", "generation", "tokenizer", "expected"),
    [
        (7, None, None, {7}),
        (7, [8, 9], 10, {7, 8, 9, 10}),
        ([7, 8], 8, None, {7, 8}),
        (None, None, 0, {0}),
        (0, None, None, {0}),
        (None, None, None, set()),
    ],
)
def test_stop_tokens_of_all_three(model, generation, tokenizer, expected):
    def having(ids):
        return SimpleNamespace(eos_token_id=ids)

    ids = stop_token_ids(
        having(model),
        None if generation is None else having(generation),
        None if tokenizer is None else having(tokenizer),
    )
    assert ids == frozenset(expected)
    assert stop_token_ids(having(model), having(generation), having(tokenizer)) == frozenset(expected)
