"""Every tensor of a model in a target layout: what a conversion would do, without doing it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sppo_megatron.config import ParallelismConfig
from sppo_megatron.hf.architecture import Architecture
from sppo_megatron.hf.mapping import EMBEDDING, OUTPUT_LAYER, expert_index
from sppo_megatron.hf.tensor_layouts import TensorLayout


@dataclass(frozen=True)
class TensorRow:
    """One Hugging Face tensor, the Megatron parameter it goes into, and who holds that.

    shard_shape: of the Megatron parameter on one rank. expert_rank: which expert-parallel rank, None for all of them.
    """

    hf_name: str
    shape: tuple[int, ...]
    megatron_name: str
    layout: str
    shard_shape: tuple[int, ...]
    stage: int
    expert_rank: int | None


def tensor_rows(
    architecture: Architecture, layouts: Mapping[str, TensorLayout], parallelism: ParallelismConfig
) -> Iterator[TensorRow]:
    """A row for each Hugging Face tensor, in the model's order."""
    p = parallelism
    tp = p.tensor_model_parallel_size
    for name, layout in layouts.items():
        expert = expert_index(name)
        size = tp if expert is None else p.expert_tensor_parallel_size or tp
        tensors: list[Any] = [torch.empty(shape, device="meta") for shape in layout.shapes]
        shard = layout.shard(tensors, 0, size)
        rank = None
        if expert is not None:
            assert architecture.mixture is not None
            rank = expert * p.expert_model_parallel_size // architecture.mixture.num_experts
        for hf_name, shape in zip(layout.hf_names, layout.shapes, strict=True):
            kind = type(layout).__name__
            yield TensorRow(hf_name, shape, name, kind, tuple(shard.shape), _stage(name, architecture, p), rank)


def _stage(name: str, architecture: Architecture, p: ParallelismConfig) -> int:
    """The pipeline stage. Chunks of layers go round the stages, virtual stage by virtual stage."""
    stages = p.pipeline_model_parallel_size
    if name == EMBEDDING:
        return 0
    if name == OUTPUT_LAYER or not name.startswith("decoder.layers."):
        return stages - 1
    chunk_size = architecture.num_layers // (stages * (p.virtual_pipeline_model_parallel_size or 1))
    return int(name.split(".")[2]) // chunk_size % stages
