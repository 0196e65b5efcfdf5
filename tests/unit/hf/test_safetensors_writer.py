"""Files written tensor by tensor, read by the library."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2Config

from sppo_megatron.hf import safetensors_writer
from sppo_megatron.hf.safetensors_writer import SafetensorsWriter
from sppo_megatron.hf.save import save_hf_folder

TENSORS = {
    "a": torch.arange(12.0).view(3, 4),
    "half": torch.randn(5, generator=torch.Generator().manual_seed(0)).half(),
    "brain": torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(1)).bfloat16(),
    "transposed": torch.arange(6.0).view(2, 3).t(),
    "numbers": torch.tensor([-1, 2**40]),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(2.5),
}


def test_the_library_reads_every_dtype(tmp_path):
    writer = SafetensorsWriter(tmp_path / "x.safetensors")
    for name, tensor in TENSORS.items():
        writer.add(name, tensor)
    writer.close()
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def test_a_header_that_is_full_begins_another_file(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_writer, "HEADER_BYTES", 400)

    tensors = {f"layer.{number}.weight": torch.full((3,), float(number)) for number in range(20)}
    save_hf_folder(tmp_path / "hf", iter(tensors.items()), Qwen2Config())
    files = sorted((tmp_path / "hf").glob("model-*.safetensors"))
    assert len(files) > 2
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_an_unknown_dtype_is_no_silent_loss(tmp_path):
    with pytest.raises(KeyError, match="complex"):
        SafetensorsWriter(tmp_path / "x.safetensors").add("c", torch.zeros(2, dtype=torch.complex64))
