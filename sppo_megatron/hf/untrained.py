"""Tensors of a checkpoint that are no part of the policy: kept as they are, and written to exports.

Layers that predict more than one token (DeepSeek-V3, GLM-4.5) are such: neither transformers nor the trainer runs them.
So is what sees images in a model whose text is the policy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from sppo_megatron.hf.architecture import Architecture
from sppo_megatron.hf.families import family_of
from sppo_megatron.hf.hf_checkpoint import HFTensors, SafetensorsFolder
from sppo_megatron.hf.tensor_layouts import TensorSource


class _Chosen:
    """The tensors whose names are wanted."""

    def __init__(self, tensors: HFTensors, wanted: Callable[[str], bool]):
        self._tensors, self._wanted = tensors, wanted

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: shape for name, shape in self._tensors.shapes().items() if self._wanted(name)}

    def source(self, name: str) -> TensorSource:
        return self._tensors.source(name)


def _is_untrained(architecture: Architecture) -> Callable[[str], bool] | None:
    family, prefix = family_of(architecture.family), re.escape(architecture.prefix)
    patterns = [rf"(?!{prefix}).*"] if prefix else []
    if family.untrained is not None:
        patterns.append(prefix + family.untrained(architecture))
    if not patterns:
        return None
    pattern = re.compile("|".join(patterns))
    return lambda name: pattern.fullmatch(name) is not None


def trained(tensors: HFTensors, architecture: Architecture) -> HFTensors:
    """Those of the policy."""
    is_untrained = _is_untrained(architecture)
    return tensors if is_untrained is None else _Chosen(tensors, lambda name: not is_untrained(name))


def untrained_names(folder: Path, architecture: Architecture) -> list[str]:
    """The names of the others in a folder in Hugging Face format, which may have no weights at all."""
    is_untrained = _is_untrained(architecture)
    if is_untrained is None or not any(folder.glob("*.safetensors")):
        return []
    return [name for name in SafetensorsFolder(folder).shapes() if is_untrained(name)]


def untrained_tensors(folder: Path, architecture: Architecture) -> Iterator[tuple[str, Tensor]]:
    """The others, one at a time."""
    names = untrained_names(folder, architecture)
    tensors = SafetensorsFolder(folder) if names else None
    for name in names:
        assert tensors is not None
        yield name, tensors.source(name)[:]
