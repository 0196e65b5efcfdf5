"""Families that publish all experts of a layer in one tensor: seen by expert, and stacked again when written.

`experts.gate_up_proj` [experts, hidden, 2·ffn] is seen as `experts.0.gate_up_proj` [hidden, 2·ffn] and so on; those are
the names of weights on their way to engines, too. MXFP4 tensors are seen as what they stand for (`mxfp4`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.hf_checkpoint import HFTensors
from sppo_megatron.hf.mxfp4 import BLOCK, dequantize
from sppo_megatron.hf.tensor_layouts import TensorSource

_STACK = re.compile(r"(.*\.experts)\.((?:gate_up|down)_proj(?:_bias)?)")
_BLOCKS = re.compile(r"(.*\.experts)\.((?:gate_up|down)_proj)_blocks")
_SCALES = re.compile(r"(.*\.experts\.(?:gate_up|down)_proj)_scales")
_ONE = re.compile(r"(.*\.experts)\.(\d+)\.((?:gate_up|down)_proj(?:_bias)?)")


@dataclass(frozen=True)
class _OfStack:
    """One expert's tensor; packed: the names of its stack's blocks and scales."""

    stack: str
    expert: int
    packed: tuple[str, str] | None = None


class _ExpertSource:
    def __init__(self, stack: TensorSource, expert: int):
        self._stack, self._expert = stack, expert

    def get_shape(self) -> Sequence[int]:
        return self._stack.get_shape()[1:]

    def __getitem__(self, index) -> Tensor:
        rest = index if isinstance(index, tuple) else (index,)
        return self._stack[(slice(self._expert, self._expert + 1), *rest)][0]


class _PackedSource:
    """Rows of blocks [experts, out, in / 32, 16] are columns of the [in, out] that they stand for."""

    def __init__(self, blocks: TensorSource, scales: TensorSource, expert: int):
        self._blocks, self._scales, self._expert = blocks, scales, expert

    def get_shape(self) -> Sequence[int]:
        _, out, blocks, _ = self._blocks.get_shape()
        return (blocks * BLOCK, out)

    def __getitem__(self, index) -> Tensor:
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        part = (slice(self._expert, self._expert + 1), columns)
        return dequantize(self._blocks[part][0], self._scales[part][0]).T[rows]


class StackedExperts:
    """A checkpoint seen by expert. Raises ConfigError for blocks without their scales."""

    def __init__(self, tensors: HFTensors):
        self._tensors = tensors
        self._parts: dict[str, _OfStack] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        shapes = tensors.shapes()
        for name, shape in shapes.items():
            if _SCALES.fullmatch(name):
                continue
            packed = _BLOCKS.fullmatch(name)
            if packed and (scales := f"{packed[1]}.{packed[2]}_scales") not in shapes:
                raise ConfigError(f"the checkpoint has {name} and no {scales}: it is torn")
            self._add(name, tuple(shape), packed)

    def _add(self, name: str, shape: tuple[int, ...], packed: re.Match[str] | None) -> None:
        found = packed or _STACK.fullmatch(name)
        if not found:
            self._shapes[name] = shape
            return
        for expert in range(shape[0]):
            seen = f"{found[1]}.{expert}.{found[2]}"
            scales = (name, f"{found[1]}.{found[2]}_scales") if packed else None
            self._parts[seen] = _OfStack(name, expert, scales)
            self._shapes[seen] = (shape[2] * BLOCK, shape[1]) if packed else shape[1:]

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    def source(self, name: str) -> TensorSource:
        part = self._parts.get(name)
        if part is None:
            return self._tensors.source(name)
        if part.packed is not None:
            blocks, scales = (self._tensors.source(stored) for stored in part.packed)
            return _PackedSource(blocks, scales, part.expert)
        return _ExpertSource(self._tensors.source(part.stack), part.expert)


def stack_experts(tensors: Iterator[tuple[str, Tensor]], num_experts: int) -> Iterator[tuple[str, Tensor]]:
    """The experts' tensors in stacks, each when its last expert has come; others as they come.

    tensors: an expert's come in the order of the experts. Peak memory is one layer's experts.
    """
    waiting: dict[str, list[Tensor]] = {}
    for name, tensor in tensors:
        found = _ONE.fullmatch(name)
        if not found:
            yield name, tensor
            continue
        stack = f"{found[1]}.{found[3]}"
        parts = waiting.setdefault(stack, [])
        assert len(parts) == int(found[2]), f"{name} does not follow its stack's expert {len(parts) - 1}"
        parts.append(tensor)
        if len(parts) == num_experts:
            yield stack, torch.stack(waiting.pop(stack))
    assert not waiting, f"experts of {', '.join(waiting)} are missing"
