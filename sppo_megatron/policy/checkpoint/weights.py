"""Weights in Megatron-Core's torch_dist format, written and read one tensor at a time, without a model in memory.

A checkpoint of this format fits every layout: `dist_checkpointing.load` of a model in any of them finds its shards. The
weights of a training checkpoint are stored alike and can be read too.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing import check_is_distributed_checkpoint
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.mapping import ShardedObject
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, create_default_global_save_plan
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.mapping import EMBEDDING, OUTPUT_LAYER
from sppo_megatron.policy.checkpoint.untrusted import nothing_executed
from sppo_megatron.policy.checkpoint.weights_table import Piece, WeightsTable

_MODEL_KEYS = ("embedding.", "decoder.", "output_layer.")  # a training checkpoint holds more


class _Writes(SavePlanner):
    """Hands the writer one piece at a time; the parameter it belongs to is made when its first piece is asked for."""

    def __init__(self, table: WeightsTable, make: Callable[[str], Tensor], dtypes: dict[str, torch.dtype], common: Any):
        self._table, self._make, self._dtypes, self._common = table, make, dtypes, common
        self._name_of: dict[MetadataIndex, str] = {}
        self._current: tuple[str, dict[tuple[int, ...], Tensor]] | None = None

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        self._is_coordinator = is_coordinator

    def create_local_plan(self) -> SavePlan:
        items = []
        if self._is_coordinator:
            key = ShardedObject("common_state", None, (1,), (0,)).unique_key
            items.append(WriteItem(MetadataIndex(key), WriteItemType.BYTE_IO))
        for name in self._table.names():
            for piece, _ in self._table.pieces(name):
                item = _write_item(piece, self._dtypes[name])
                self._name_of[MetadataIndex(piece.key, item.index.offset)] = name
                items.append(item)
        return SavePlan(items)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        return create_default_global_save_plan(all_plans)

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        if write_item.type == WriteItemType.BYTE_IO:
            stream = io.BytesIO()
            torch.save([self._common], stream)
            return stream
        offset = write_item.index.offset
        assert offset is not None
        name = self._name_of[MetadataIndex(write_item.index.fqn, offset)]
        if self._current is None or self._current[0] != name:
            self._current = None  # the last one's memory goes before the next one's comes
            pieces = self._table.pieces(name, self._make(name))
            self._current = (name, {piece.offset: tensor for piece, tensor in pieces})
        return self._current[1][tuple(offset)]


def _write_item(piece: Piece, dtype: torch.dtype) -> WriteItem:
    chunk = ChunkStorageMetadata(torch.Size(piece.offset), torch.Size(piece.shape))
    data = TensorWriteData(chunk, TensorProperties(dtype=dtype), torch.Size(piece.size))
    return WriteItem(MetadataIndex(piece.key, chunk.offsets), WriteItemType.SHARD, tensor_data=data)


def write_weights(
    folder: Path, table: WeightsTable, make: Callable[[str], Tensor], dtypes: dict[str, torch.dtype]
) -> None:
    """Writes every parameter of the table into an existing, empty folder.

    make: a parameter, whole, by its canonical name, called once for each in the table's order and its result dropped
    before the next. dtypes: of what it will return.
    """
    common = {"content_metadata": {"weights_only": True}}
    planner = _Writes(table, make, dtypes, common)
    writer = dcp.FileSystemWriter(folder, thread_count=1)
    dcp.save({}, storage_writer=writer, planner=planner, no_dist=True)
    save_config(CheckpointingConfig("torch_dist", 1), str(folder))


class _Reads(DefaultLoadPlanner):
    """Copies what is read into the destinations, by the key and place of the piece they are for."""

    def __init__(self, destinations: dict[tuple[str, tuple[int, ...]], Tensor]):
        super().__init__()
        self._destinations = destinations

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        assert index.offset is not None
        return self._destinations[(index.fqn, tuple(index.offset))]


class StoredWeights:
    """The weights of a torch_dist checkpoint."""

    def __init__(self, folder: Path, table: WeightsTable):
        """Raises ConfigError if the folder is no such checkpoint, or lacks or misshapes a tensor of the model."""
        if not check_is_distributed_checkpoint(str(folder)):
            raise ConfigError(f"{folder} is no checkpoint of Megatron-Core's torch_dist format")
        self._table = table
        self._reader = dcp.FileSystemReader(folder)
        with nothing_executed(folder):
            self._metadata = self._reader.read_metadata()
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)
        self._check(folder)

    def dtype(self, name: str) -> torch.dtype:
        piece, _ = next(self._table.pieces(name))
        return self._stored(piece.key).properties.dtype

    def read(self, name: str) -> Tensor:
        """A parameter, whole, by its canonical name, in the dtype it is stored in."""
        tensor = self._table.empty(name, self.dtype(name))
        destinations, items = {}, []
        for piece, part in self._table.pieces(name, tensor):
            destinations[(piece.key, piece.offset)] = part
            items += self._read_items(piece)
        self._reader.read_data(LoadPlan(items), _Reads(destinations)).wait()
        return tensor

    def _read_items(self, piece: Piece) -> list[ReadItem]:
        chunk = ChunkStorageMetadata(torch.Size(piece.offset), torch.Size(piece.shape))
        return create_read_items_for_chunk_list(piece.key, self._stored(piece.key), [chunk])

    def _stored(self, key: str) -> TensorStorageMetadata:
        stored = self._metadata.state_dict_metadata[key]
        assert isinstance(stored, TensorStorageMetadata)
        return stored

    def _check(self, folder: Path) -> None:
        stored = {
            key: tuple(value.size)
            for key, value in self._metadata.state_dict_metadata.items()
            if isinstance(value, TensorStorageMetadata) and key.startswith(_MODEL_KEYS)
        }
        expected = {piece.key: piece.size for name in self._table.names() for piece, _ in self._table.pieces(name)}
        problems = [f"{key} is missing" for key in expected if key not in stored]
        problems += [f"{key} is not of this model" for key in stored if key not in expected]
        problems += [
            f"{key} is {list(stored[key])}, the config says {list(size)}"
            for key, size in expected.items()
            if key in stored and not _holds(key, stored[key], size)
        ]
        if problems:
            more = f" and {len(problems) - 10} more" if len(problems) > 10 else ""
            raise ConfigError(f"the checkpoint {folder} does not fit the model: {'; '.join(problems[:10])}{more}")


def _holds(key: str, stored: tuple[int, ...], size: tuple[int, ...]) -> bool:
    """Equal sizes; the vocabulary may have rows of padding beyond the size."""
    if key in (EMBEDDING, OUTPUT_LAYER):
        return stored[0] >= size[0] and stored[1:] == size[1:]
    return stored == size
