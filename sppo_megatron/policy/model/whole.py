"""Weights in Megatron-Core's torch_dist format for any `ModelSource`, by a whole model in the memory of one process.

Our own families are converted one tensor at a time (`weights_checkpoint`); what megatron-bridge maps is converted so.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import check_is_distributed_checkpoint
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from torch import Tensor

from sppo_megatron.config import Config, PrecisionConfig
from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.mapping import EMBEDDING
from sppo_megatron.policy.checkpoint.logits import load_weights
from sppo_megatron.policy.checkpoint.results_queue import start_results_queue
from sppo_megatron.policy.checkpoint.untrusted import nothing_executed
from sppo_megatron.policy.checkpoint.weights_table import STATE_DICT_METADATA
from sppo_megatron.policy.initialize import initialize_model_parallel
from sppo_megatron.policy.model.build import unwrap
from sppo_megatron.policy.model.precision import DTYPES
from sppo_megatron.policy.model.source import ModelSource


def store_model(model: ModelSource, folder: Path, dtype: torch.dtype) -> None:
    """Writes the model's weights into an existing, empty folder. Takes over Megatron's process groups."""
    run = _run_in(dtype)
    groups = initialize_model_parallel(run.parallelism, seed=0)
    _, chunks = model.build(run, groups)
    model.load_weights(chunks, groups)
    state = unwrap(chunks[0]).sharded_state_dict(metadata=STATE_DICT_METADATA | {"dp_cp_group": groups.dp_cp})
    start_results_queue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dist_checkpointing.save(
            state,
            str(folder),
            TorchDistSaveShardedStrategy("torch_dist", 1),
            content_metadata={"weights_only": True},
        )


def read_model(model: ModelSource, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Whole tensors by Hugging Face names, in the dtype that is stored. Takes over Megatron's process groups.

    Raises ConfigError if the folder is no such checkpoint.
    """
    if not check_is_distributed_checkpoint(str(folder)):
        raise ConfigError(f"{folder} is no checkpoint of Megatron-Core's torch_dist format")
    with nothing_executed(folder):
        stored = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata[EMBEDDING]
    run = _run_in(stored.properties.dtype)  # type: ignore[union-attr]
    groups = initialize_model_parallel(run.parallelism, seed=0)
    _, chunks = model.build(run, groups)
    load_weights(chunks, groups, folder)
    return model.export_weights(chunks, groups)


def _run_in(dtype: torch.dtype) -> Config:
    return Config(precision=PrecisionConfig(dtype=next(name for name, value in DTYPES.items() if value is dtype)))
