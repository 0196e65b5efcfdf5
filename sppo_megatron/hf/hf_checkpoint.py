"""Where Hugging Face tensors come from: safetensors files, or a seeded random initialization."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.tensor_layouts import TensorSource

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


class HFTensors(Protocol):
    """Named tensors that can be read by slices."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def source(self, name: str) -> TensorSource: ...


class SafetensorsFolder:
    """The tensors of a folder in Hugging Face format, one file or sharded with an index. Files are memory-mapped."""

    def __init__(self, folder: str | Path):
        """Raises ValueError if the folder holds no safetensors or a file of the index is missing."""
        self._folder = Path(folder)
        self._file_of = self._read_index()
        self._open = {
            name: safe_open(self._folder / name, framework="pt") for name in sorted(set(self._file_of.values()))
        }

    def _read_index(self) -> dict[str, str]:
        index = self._folder / INDEX_FILE
        if index.exists():
            file_of: dict[str, str] = json.loads(index.read_text())["weight_map"]
            missing = sorted({name for name in file_of.values() if not (self._folder / name).exists()})
            if missing:
                raise ConfigError(f"{index} names files that are not there: {', '.join(missing)}")
            return file_of
        single = self._folder / SINGLE_FILE
        if not single.exists():
            raise ConfigError(f"{self._folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}: no weights to load")
        with safe_open(single, framework="pt") as file:
            return dict.fromkeys(file.keys(), SINGLE_FILE)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(self.source(name).get_shape()) for name in self._file_of}

    def source(self, name: str) -> TensorSource:
        return self._open[self._file_of[name]].get_slice(name)


class _InMemory:
    def __init__(self, tensor: Tensor):
        self._tensor = tensor

    def get_shape(self) -> Sequence[int]:
        return self._tensor.shape

    def __getitem__(self, index) -> Tensor:
        return self._tensor[index]


class RandomTensors:
    """A fresh model: normal(0, initializer_range) matrices, unit norms, zero biases.

    Each tensor depends on the seed and its own name alone, so every parallel layout starts from the same model.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], initializer_range: float, seed: int):
        self._shapes = dict(shapes)
        self._std = initializer_range
        self._seed = seed

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._shapes

    def source(self, name: str) -> TensorSource:
        shape = self._shapes[name]
        if name.endswith(".bias"):
            return _InMemory(torch.zeros(shape))
        if len(shape) == 1:
            return _InMemory(torch.ones(shape))
        digest = hashlib.sha256(f"{self._seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        return _InMemory(torch.randn(shape, generator=generator) * self._std)
