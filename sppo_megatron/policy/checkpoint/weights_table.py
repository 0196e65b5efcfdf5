"""Which piece of which stored tensor a parameter is, in Megatron-Core's distributed checkpoints.

Megatron-Core itself says so: a whole model is built, uninitialized, asked for its sharded state dict, and dropped. It
is built on the CPU, where memory that nobody writes to costs nothing: no GPU holds every model whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch import Tensor

from sppo_megatron.config import ModelConfig, ParallelismConfig, PrecisionConfig
from sppo_megatron.hf.architecture import Architecture
from sppo_megatron.hf.mapping import canonical_name
from sppo_megatron.policy.initialize import initialize_model_parallel
from sppo_megatron.policy.model.build import build_chunks, named_parameters, named_weights, transformer_config, unwrap

# How Megatron-Core lays out sharded state dicts; training checkpoints are laid out alike.
STATE_DICT_METADATA = {"singleton_local_shards": False}


@dataclass(frozen=True)
class Piece:
    """One box of a stored tensor: its key, the whole tensor's size, and where the box is in it."""

    key: str
    size: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]


class WeightsTable:
    """The parameters of a model, by canonical names in the model's order, as pieces of stored tensors."""

    def __init__(self, architecture: Architecture, padded_vocab_size: int):
        """Takes over Megatron's process groups: model parallel sizes are 1 afterwards, whatever the world."""
        groups = initialize_model_parallel(ParallelismConfig(), seed=0)
        config = transformer_config(architecture, ModelConfig(), ParallelismConfig(), PrecisionConfig(dtype="fp32"))
        config.use_cpu_initialization, config.perform_initialization = True, False
        chunks = build_chunks(architecture, config, padded_vocab_size, groups)
        metadata = STATE_DICT_METADATA | {"dp_cp_group": groups.dp_cp}
        stored = unwrap(chunks[0]).sharded_state_dict(metadata=metadata)
        local_names = [name for name, _ in named_weights(unwrap(chunks[0]))]
        global_names = [canonical_name(name) for name, _ in named_parameters(chunks)]
        self._entries: dict[str, Any] = {
            name: replace(stored[local], data=torch.empty_like(stored[local].data, device="meta"))
            for name, local in zip(global_names, local_names, strict=True)
            if isinstance(stored[local], ShardedTensor | ShardedTensorFactory)
        }
        missing = [name for name in global_names if name not in self._entries]
        if missing:
            raise RuntimeError(f"Megatron-Core doesn't store {', '.join(missing)} as tensors")

    def names(self) -> list[str]:
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._entries[name].data.shape)

    def pieces(self, name: str, tensor: Tensor | None = None) -> Iterator[tuple[Piece, Tensor]]:
        """The parameter's pieces, each with its part of `tensor`, a view shaped as the piece is stored.

        Without a tensor the views are of no memory ("meta").
        """
        entry = self._entries[name]
        data = entry.data if tensor is None else tensor
        if isinstance(entry, ShardedTensorFactory):
            built = list(nested_values(replace(entry, data=data).build()))
        else:
            built = [replace(entry, data=data, dtype=data.dtype)]
        for shard in built:
            shape = (1,) * shard.prepend_axis_num + tuple(shard.local_shape)
            yield Piece(shard.key, tuple(shard.global_shape), tuple(shard.global_offset), shape), shard.data.view(shape)

    def empty(self, name: str, dtype: torch.dtype) -> Tensor:
        return torch.empty(self.shape(name), dtype=dtype)
