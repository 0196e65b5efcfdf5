"""Sources of tensors: safetensors folders as transformers writes them, and the random initialization."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from sppo_megatron.hf.hf_checkpoint import RandomTensors, SafetensorsFolder
from sppo_megatron.hf.hf_config import read_architecture
from sppo_megatron.hf.mapping import hf_shapes, parameter_layouts
from sppo_megatron.hf.weight_files import INDEX_FILE, SINGLE_FILE

SHAPES = {"a.weight": (64, 32), "b.weight": (64, 32), "norm.weight": (64,), "q.bias": (64,)}


@pytest.mark.parametrize("max_shard_size", ["1GB", "3KB"])
def test_reads_what_transformers_saves(hf_model, stored, tmp_path, max_shard_size):
    hf_model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / INDEX_FILE).exists() == (max_shard_size == "3KB")
    folder = SafetensorsFolder(tmp_path)
    assert folder.shapes() == {name: tuple(tensor.shape) for name, tensor in stored.items()}
    for name, tensor in stored.items():
        source = folder.source(name)
        assert tuple(source.get_shape()) == tuple(tensor.shape)
        assert torch.equal(source[:], tensor)
        assert torch.equal(source[1:3], tensor[1:3])
        if tensor.dim() == 2:
            assert torch.equal(source[:, 2:5], tensor[:, 2:5])


def test_a_file_of_the_index_is_missing(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "one.safetensors")
    weight_map = {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors", "d": "three.safetensors"}
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=r"not there: three\.safetensors, two\.safetensors"):
        SafetensorsFolder(tmp_path)


def test_no_weights(tmp_path):
    with pytest.raises(ValueError, match=rf"neither {SINGLE_FILE} nor {INDEX_FILE}"):
        SafetensorsFolder(tmp_path)


def tensor_of(name: str, seed: int = 0, std: float = 0.02, shapes=SHAPES) -> torch.Tensor:
    return RandomTensors(shapes, std, seed).source(name)[:]


def test_random_tensors_are_a_function_of_seed_and_name():
    assert torch.equal(tensor_of("a.weight"), tensor_of("a.weight"))
    torch.manual_seed(3)
    alone = tensor_of("a.weight", shapes={"a.weight": SHAPES["a.weight"]})
    assert torch.equal(alone, tensor_of("a.weight"))  # neither other tensors nor the global generator matter
    assert not torch.equal(tensor_of("a.weight"), tensor_of("b.weight"))
    assert not torch.equal(tensor_of("a.weight"), tensor_of("a.weight", seed=1))


def test_random_tensors_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    tensor_of("a.weight")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_initial_distribution():
    weight = tensor_of("a.weight", std=0.5)
    assert abs(float(weight.mean())) < 4 * 0.5 / 2048**0.5
    assert float(weight.std()) == pytest.approx(0.5, rel=0.1)
    assert torch.equal(tensor_of("norm.weight"), torch.ones(64))
    assert torch.equal(tensor_of("q.bias"), torch.zeros(64))


def test_random_tensors_can_be_sliced():
    source = RandomTensors(SHAPES, 0.02, 0).source("a.weight")
    assert tuple(source.get_shape()) == (64, 32)
    assert torch.equal(source[3:9, 2:4], source[:][3:9, 2:4])


@pytest.mark.parametrize("name", ["qwen2-tied", "qwen3", "llama"])
def test_a_fresh_model_is_initialized_like_transformers(make_config, name):
    """Same kinds of tensors get the same kind of start: constants if transformers has them, random elsewhere."""
    from transformers import AutoModelForCausalLM

    config = make_config(name)
    reference = AutoModelForCausalLM.from_config(config).state_dict()
    shapes = hf_shapes(parameter_layouts(read_architecture(config), 40))
    tensors = RandomTensors(shapes, config.initializer_range, seed=0)
    for tensor_name in shapes:
        ours, theirs = tensors.source(tensor_name)[:], reference[tensor_name]
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        if theirs.min() == theirs.max():
            assert torch.equal(ours, theirs), tensor_name
        else:
            assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.35), tensor_name
