"""The folder beside its weights: where it is, what is fetched of a hub's, generation config, end tokens."""

from __future__ import annotations

import json
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from transformers import GenerationConfig

from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.hf_folder import (
    load_generation_config,
    resolve_hf_folder,
    stop_token_ids,
)
from sppo_megatron.hf.weight_files import INDEX_FILE, SINGLE_FILE


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


REPOSITORY = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "additional_chat_templates/rag.jinja",
    "model.safetensors",
    "model.fp16.safetensors",
    "consolidated.safetensors",
    "params.json",
    "adapter_model.safetensors",
    "pytorch_model.bin",
    "original/model.safetensors",
    "original/consolidated.00.pth",
    "original/tokenizer.model",
    "original/config.json",
    "metal/model.bin",
    "onnx/model.onnx",
    "onnx/config.json",
    "model.safetensors.index.fp32.json",
    "modeling_x.py",
)
SMALL = set(REPOSITORY[:6])
SHARDS = ("model.safetensors-00001-of-00002.safetensors", "model.safetensors-00002-of-00002.safetensors")


def fake_hub(tmp_path, names, index=None):
    """A download as huggingface_hub's: the files of the repository that fit the patterns, into one folder."""

    def download(name, allow_patterns):
        assert name == "owner/name"
        for path in filter_repo_objects(names, allow_patterns=allow_patterns):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(json.dumps(index) if path == INDEX_FILE else "")
        return str(tmp_path)

    return download


@pytest.mark.parametrize("is_sharded", [False, True])
def test_a_hub_id_is_fetched_with_one_set_of_weights_and_tokenizer(tmp_path, monkeypatch, is_sharded):
    index = {"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[0]}}
    names = (*REPOSITORY, *SHARDS, INDEX_FILE) if is_sharded else REPOSITORY
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake_hub(tmp_path, names, index))
    assert resolve_hf_folder("owner/name") == tmp_path
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == SMALL | ({*SHARDS, INDEX_FILE} if is_sharded else {SINGLE_FILE})


def test_a_tokenizer_is_fetched_without_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake_hub(tmp_path, REPOSITORY))
    resolve_hf_folder("owner/name", with_weights=False)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == SMALL


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("offline"), OSError("no route")])
def test_a_hub_id_that_can_not_be_fetched(monkeypatch, error):
    def download(name, allow_patterns):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ValueError, match=r"model\.hf_path='owner/name' is no local folder and could not be fetched"):
        resolve_hf_folder("owner/name")


def test_generation_config(tmp_path):
    assert load_generation_config(tmp_path) is None
    GenerationConfig(eos_token_id=[4, 5]).save_pretrained(tmp_path)
    assert load_generation_config(tmp_path).eos_token_id == [4, 5]


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_torn_generation_config_is_named(tmp_path, content):
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"generation_config\.json can't be read: .*; mend it, or remove it"):
        load_generation_config(tmp_path)


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
