"""Where Hugging Face tensors come from: safetensors files, or a seeded random initialization."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.tensor_layouts import TensorSource
from sppo_megatron.hf.weight_files import open_safetensors, weight_files


class HFTensors(Protocol):
    """Named tensors that can be read by slices."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def source(self, name: str) -> TensorSource: ...


class SafetensorsFolder:
    """The tensors of a folder in Hugging Face format, one file or sharded with an index. Files are memory-mapped.

    What a file holds counts, whatever the index says about its tensors, as for transformers."""

    def __init__(self, folder: str | Path):
        """Raises ConfigError as `weight_files` and `open_safetensors` do, and if two files hold the same tensor."""
        self._file_of: dict[str, Any] = {}
        for file in weight_files(Path(folder)):
            opened = open_safetensors(Path(folder) / file)
            names = opened.keys()
            twice = sorted(self._file_of.keys() & names)
            if twice:
                raise ConfigError(
                    f"{folder}: {twice[0]} is in more than one of its files, {file} among them: save the model again "
                    "into an empty folder"
                )
            self._file_of |= dict.fromkeys(names, opened)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(self.source(name).get_shape()) for name in self._file_of}

    def source(self, name: str) -> TensorSource:
        return self._file_of[name].get_slice(name)


class _InMemory:
    def __init__(self, tensor: Tensor):
        self._tensor = tensor

    def get_shape(self) -> Sequence[int]:
        return self._tensor.shape

    def __getitem__(self, index) -> Tensor:
        return self._tensor[index]


class RandomTensors:
    """A fresh model: normal(0, initializer_range) matrices, zero biases, norms that start at `norms`.

    Each tensor depends on the seed and its own name alone, so every parallel layout starts from the same model.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], initializer_range: float, seed: int, norms: float = 1.0):
        self._shapes = dict(shapes)
        self._std = initializer_range
        self._seed = seed
        self._norms = norms

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._shapes

    def source(self, name: str) -> TensorSource:
        shape = self._shapes[name]
        if name.endswith("bias"):
            return _InMemory(torch.zeros(shape))
        if len(shape) == 1 and name.endswith("norm.weight"):
            return _InMemory(torch.full(shape, self._norms))
        digest = hashlib.sha256(f"{self._seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        return _InMemory(torch.randn(shape, generator=generator) * self._std)
