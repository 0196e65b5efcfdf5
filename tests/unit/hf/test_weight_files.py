"""One set of weights, or a word which files are in doubt."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.hf_checkpoint import SafetensorsFolder
from sppo_megatron.hf.load import check_tied_head
from sppo_megatron.hf.weight_files import INDEX_FILE, SINGLE_FILE, weight_files


def save(folder, **files):
    """Files by their stems, each with its tensors by name, filled with a number."""
    for stem, tensors in files.items():
        values = {name: torch.full((5000, 2), float(value)) for name, value in tensors.items()}
        save_file(values, folder / f"{stem}.safetensors")


def write_index(folder, **file_of):
    weight_map = {name: f"{stem}.safetensors" for name, stem in file_of.items()}
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    ("left", "said"), [(["s1", "s2"], "the 2 files that it names"), (["s1"], "gone"), ([], "gone")]
)
def test_an_index_and_a_single_file_of_other_weights(tmp_path, left, said):
    save(tmp_path, model={"a": 1, "b": 1}, **{stem: {} for stem in left})
    write_index(tmp_path, a="s1", b="s2")
    with pytest.raises(
        ConfigError, match=rf"{SINGLE_FILE} and {INDEX_FILE} with other weights: delete the index.*{said}"
    ):
        weight_files(tmp_path)


def test_an_index_may_name_the_single_file(tmp_path):
    save(tmp_path, model={"a": 1, "b": 2})
    write_index(tmp_path, a="model", b="model")
    assert weight_files(tmp_path) == [SINGLE_FILE]


def test_leftovers_beside_the_index_are_not_read(tmp_path):
    save(tmp_path, s1={"a": 1}, s2={"b": 2}, old={"a": 8, "b": 9}, consolidated={"x": 3})
    write_index(tmp_path, a="s1", b="s2")
    folder = SafetensorsFolder(tmp_path)
    assert folder.shapes().keys() == {"a", "b"}
    assert float(folder.source("b")[:][0, 0]) == 2


def test_a_stale_map_of_the_right_files_counts_for_nothing(tmp_path):
    """As transformers reads it: all that the files hold."""
    save(tmp_path, s1={"a": 1}, s2={"b": 2, "c": 3})
    write_index(tmp_path, a="s2", b="s1", gone="s1")
    folder = SafetensorsFolder(tmp_path)
    assert {name: float(folder.source(name)[:][0, 0]) for name in folder.shapes()} == {"a": 1, "b": 2, "c": 3}


def test_a_tensor_in_two_files_of_the_index(tmp_path):
    save(tmp_path, s1={"a": 1, "b": 1}, s2={"b": 2})
    write_index(tmp_path, a="s1", b="s2")
    with pytest.raises(ConfigError, match=r"b is in more than one of its files, s2\.safetensors among them"):
        SafetensorsFolder(tmp_path)


@pytest.mark.parametrize(
    "index",
    ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../x.safetensors"}}', '{"weight_map": {"a": 1}}'],
)
def test_what_is_no_index(tmp_path, index):
    (tmp_path / INDEX_FILE).write_text(index)
    with pytest.raises(ConfigError, match="is no index of weights"):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("consolidated.safetensors", "it has consolidated.safetensors, which aren't read: open it with transformers"),
        ("pytorch_model.bin", "it has pytorch_model.bin"),
        ("adapter_model.safetensors", "merge an adapter into its base model first"),
    ],
)
def test_only_other_weights(tmp_path, name, said):
    (tmp_path / name).write_text("")
    with pytest.raises(ConfigError, match=said):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "fetch or save it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "pointer of Git LFS"),
        (None, "fetch or save it again"),
    ],
)
def test_a_file_that_is_torn(tmp_path, content, said):
    save(tmp_path, model={"a": 1})
    path = tmp_path / SINGLE_FILE
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ConfigError, match=rf"{SINGLE_FILE} is no whole safetensors file .*{said}"):
        SafetensorsFolder(tmp_path)


def test_a_tied_head_that_is_stored(tmp_path):
    embedding = torch.randn(5000, 2)
    head = embedding.clone()
    for value, is_refused in ((head[4999, 1], False), (torch.tensor(9.0), True)):
        head[4999, 1] = value
        save_file({"model.embed_tokens.weight": embedding, "lm_head.weight": head}, tmp_path / SINGLE_FILE)
        if is_refused:
            with pytest.raises(ConfigError, match=r"tie_word_embeddings=true, and the stored lm_head\.weight isn't"):
                check_tied_head(SafetensorsFolder(tmp_path))
        else:
            check_tied_head(SafetensorsFolder(tmp_path))
