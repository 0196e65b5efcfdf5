"""Which parameters one rank holds and how large its shards are: from the conversion table, exactly."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from sppo_megatron.hf.architecture import Architecture
from sppo_megatron.hf.mapping import EMBEDDING, EXPERT_BIAS, OUTPUT_LAYER, expert_index, hf_shapes, parameter_layouts
from sppo_megatron.hf.tensor_layouts import TensorLayout
from sppo_planner.parallel_sizes import ParallelSizes

_NUMBER = re.compile(r"\.\d+(?=\.)")


@dataclass(frozen=True)
class Parameter:
    """One rank's shard of a parameter. kind: its name with stars for layers and experts.

    is_expert: it lies in the experts' own gradient buffer. is_shared_embedding: a tied embedding that the first and the
    last pipeline stage both hold.
    """

    kind: str
    elements: int
    is_expert: bool = False
    is_shared_embedding: bool = False


class ParameterTable:
    """The parameters of one model on the ranks of any layout."""

    def __init__(self, architecture: Architecture, make_vocab_size_divisible_by: int):
        self.architecture = architecture
        self._divisible_by = make_vocab_size_divisible_by
        self._layers: dict[int, list[tuple[str, int | None, TensorLayout]]] = {}  # (kind, expert, layout)
        self._shards: dict[tuple[str, int], int] = {}
        self._found: dict[tuple[bool, int, int, int, int], list[Parameter]] = {}
        for name, layout in parameter_layouts(architecture, architecture.vocab_size).items():
            if name.startswith("decoder.layers.") and not name.endswith(EXPERT_BIAS):
                layer = self._layers.setdefault(int(name.split(".")[2]), [])
                layer.append((_NUMBER.sub(".*", name), expert_index(name), layout))
        for layer in self._layers.values():
            layer.sort(key=lambda entry: _order_in_layer(entry[0]))

    @cached_property
    def total(self) -> int:
        """Parameters of the whole model, without padding, a tied embedding once."""
        shapes = hf_shapes(parameter_layouts(self.architecture, self.architecture.vocab_size))
        return sum(math.prod(shape) for shape in shapes.values())

    @cached_property
    def active_matrix_elements(self) -> float:
        """Elements of the layers' matrices that one token is multiplied with; of experts, those of its choices."""
        moe, total = self.architecture.mixture, 0.0
        for layer in self._layers.values():
            for _, expert, layout in layer:
                elements = sum(math.prod(shape) for shape in layout.shapes if len(shape) == 2)
                share = 1.0 if expert is None or moe is None else moe.num_experts_per_token / moe.num_experts
                total += elements * share
        return total

    def padded_vocab_size(self, tp: int) -> int:
        return self.architecture.padded_vocab_size(self._divisible_by, tp)

    def of_stage(self, sizes: ParallelSizes, stage: int, expert_rank: int = 0) -> list[list[Parameter]]:
        """The parameters of each model chunk of a pipeline stage, in Megatron's order.

        expert_rank: of the expert-parallel group. Tensor-parallel ranks hold shards of equal size. Chunks of layers go
        round the stages, virtual stage by virtual stage.
        """
        a, per_chunk = self.architecture, self.architecture.num_layers // (sizes.pp * sizes.vpp)
        chunks = []
        for virtual in range(sizes.vpp):
            first = (virtual * sizes.pp + stage) * per_chunk
            chunk = [self._embedding(sizes)] if first == 0 else []
            for layer in range(first, first + per_chunk):
                chunk += self._of_layer(layer, sizes, expert_rank)
            if first + per_chunk == a.num_layers:
                chunk.append(Parameter("decoder.final_layernorm.weight", a.hidden_size))
                if not a.tied_embeddings or sizes.pp > 1:
                    chunk.append(self._output_layer(sizes))
            chunks.append(chunk)
        return chunks

    def _embedding(self, sizes: ParallelSizes) -> Parameter:
        shared = self.architecture.tied_embeddings and sizes.pp > 1
        return Parameter(EMBEDDING, self._vocabulary_shard(sizes.tp), is_shared_embedding=shared)

    def _output_layer(self, sizes: ParallelSizes) -> Parameter:
        shared = self.architecture.tied_embeddings
        return Parameter(OUTPUT_LAYER, self._vocabulary_shard(sizes.tp), is_shared_embedding=shared)

    def _vocabulary_shard(self, tp: int) -> int:
        return self.padded_vocab_size(tp) // tp * self.architecture.hidden_size

    def _of_layer(self, layer: int, sizes: ParallelSizes, expert_rank: int) -> list[Parameter]:
        """Dense layers are all alike, and so are mixtures."""
        is_mixture = any(expert is not None for _, expert, _ in self._layers[layer])
        key = (is_mixture, sizes.tp, sizes.etp, sizes.ep, expert_rank)
        if key not in self._found:
            self._found[key] = self._build_layer(layer, sizes, expert_rank)
        return self._found[key]

    def _build_layer(self, layer: int, sizes: ParallelSizes, expert_rank: int) -> list[Parameter]:
        found = []
        for kind, expert, layout in self._layers[layer]:
            if expert is not None and self._holder(expert, sizes.ep) != expert_rank:
                continue
            size = sizes.tp if expert is None else sizes.etp
            found.append(Parameter(kind, self._shard(kind, layout, size), is_expert=expert is not None))
        return found

    def _holder(self, expert: int, ep: int) -> int:
        assert self.architecture.mixture is not None
        return expert * ep // self.architecture.mixture.num_experts

    def _shard(self, kind: str, layout: TensorLayout, size: int) -> int:
        """Elements on one of `size` ranks; parameters of one kind have one shape."""
        if (kind, size) not in self._shards:
            tensors: list[Any] = [torch.empty(shape, device="meta") for shape in layout.shapes]
            self._shards[kind, size] = layout.shard(tensors, 0, size).numel()
        return self._shards[kind, size]


def _order_in_layer(kind: str) -> int:
    """Megatron builds the output projection before what queries, keys and values come from; the rest is as in the
    table. A bias of the experts' choice is a buffer, which no optimizer knows."""
    order = (
        *("input_layernorm", "core_attention", "linear_proj", "linear_q", "linear_kv", "q_layernorm", "k"),
        *("pre_mlp_layernorm", "mlp"),
    )
    return next(place for place, part in enumerate(order) if f".{part}" in kind)
