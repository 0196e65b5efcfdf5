"""Checkpoints that hold all experts of a layer in one tensor, as transformers 5 has them in memory, read by expert.

Published checkpoints hold three tensors for each expert, and transformers writes and reads those too; what is fused is
`experts.gate_up_proj` [experts, 2·ffn, hidden], gate above up, and `experts.down_proj` [experts, hidden, ffn].
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sppo_megatron.hf.families.family import ExpertNames
from sppo_megatron.hf.hf_checkpoint import HFTensors
from sppo_megatron.hf.tensor_layouts import TensorSource

_FUSED = re.compile(r"^((?:.*\.)?model\.layers\.\d+\.)mlp\.experts\.(gate_up_proj|down_proj)$")
_ROUTER = re.compile(r"^((?:.*\.)?model\.layers\.\d+\.)mlp\.gate\.weight$")


@dataclass(frozen=True)
class _Part:
    """Rows [start, start + shape[0]) of one expert; shape None: the whole tensor."""

    name: str
    expert: int = 0
    start: int = 0
    shape: tuple[int, int] | None = None


class _PartSource:
    def __init__(self, source: TensorSource, part: _Part):
        assert part.shape is not None
        self._source, self._part, self._shape = source, part, part.shape

    def get_shape(self) -> Sequence[int]:
        return self._shape

    def __getitem__(self, index) -> Tensor:
        rows, *columns = index if isinstance(index, tuple) else (index,)
        first, last, _ = rows.indices(self._shape[0])
        start, expert = self._part.start, self._part.expert
        return self._source[(slice(expert, expert + 1), slice(start + first, start + last), *columns)][0]


class FusedExperts:
    """A checkpoint with fused experts, seen by the names of `names`, one tensor for each expert's projection."""

    def __init__(self, tensors: HFTensors, names: ExpertNames):
        self._tensors = tensors
        self._parts: dict[str, _Part] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in tensors.shapes().items():
            self._add(name, tuple(shape), names)

    def _add(self, name: str, shape: tuple[int, ...], names: ExpertNames) -> None:
        fused = _FUSED.match(name)
        if fused is None or len(shape) != 3:
            # in memory every family calls the block `mlp`
            seen = _ROUTER.sub(rf"\1{names.block}.{names.router}.weight", name)
            self._parts[seen], self._shapes[seen] = _Part(name), shape
            return
        experts, rows, columns = shape
        projections = (names.down,) if fused[2] == "down_proj" else (names.gate, names.up)
        size = (rows // len(projections), columns)
        for expert in range(experts):
            for order, projection in enumerate(projections):
                seen = f"{fused[1]}{names.block}.experts.{expert}.{projection}.weight"
                self._parts[seen] = _Part(name, expert, order * size[0], size)
                self._shapes[seen] = size

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    def source(self, name: str) -> TensorSource:
        part = self._parts[name]
        source = self._tensors.source(part.name)
        return source if part.shape is None else _PartSource(source, part)


def by_expert(tensors: HFTensors, names: ExpertNames | None) -> HFTensors:
    """The tensors by the names of published checkpoints, whichever way the experts are stored."""
    if names is None or not any(_FUSED.match(name) for name in tensors.shapes()):
        return tensors
    return FusedExperts(tensors, names)
