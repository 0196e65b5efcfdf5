"""Training checkpoints by Megatron-Core's dist_checkpointing: complete or absent, loadable on another layout.

A checkpoint is the folder `step_NNNNNNNN`. It is written as `step_NNNNNNNN.partial` and renamed when every byte of it
is on the disk, so a folder without that suffix is whole.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue, AsyncRequest
from megatron.core.dist_checkpointing.strategies.torch import (
    TorchDistLoadShardedStrategy,
    TorchDistSaveShardedStrategy,
)

from sppo_megatron.policy.model import unwrap
from sppo_megatron.policy.policy import Policy

WEIGHTS = "megatron"  # the sub-folder of dist_checkpointing
_NAME = re.compile(r"step_(\d{8})")
_OPTIMIZER_KIND = "use_distributed_optimizer"


def checkpoint_name(step: int) -> str:
    return f"step_{step:08d}"


def latest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint of the highest step in a folder."""
    found = [path for path in folder.glob("step_*") if _NAME.fullmatch(path.name)]
    return max(found, default=None, key=lambda path: path.name)


class Checkpointer:
    """Saves and loads the policy and whatever the trainer adds. Every method is collective."""

    def __init__(self, policy: Policy, folder: Path, *, keep_last: int, async_save: bool):
        self._policy = policy
        self._folder = folder
        self._keep_last = keep_last
        self._queue = AsyncCallsQueue(persistent=False) if async_save else None

    def save(self, step: int, write_host_state: Callable[[Path], None]) -> None:
        """Saves after optimizer step `step`. write_host_state is called on rank 0 with the folder to write into.

        With async_save the tensors are snapshotted now and written while training goes on; `finalize` waits for them.
        """
        self.finalize()
        self._policy.synchronize_parameters()
        final = self._folder / checkpoint_name(step)
        partial = final.with_name(final.name + ".partial")
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
            (partial / WEIGHTS).mkdir(parents=True)
            write_host_state(partial)
        dist.barrier()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            request: AsyncRequest | None = dist_checkpointing.save(
                self._sharded_state_dict(is_loading=False),
                str(partial / WEIGHTS),
                TorchDistSaveShardedStrategy("torch_dist", 1),
                async_sharded_save=self._queue is not None,
                async_strategy="mcore",
                content_metadata=self._content_metadata(),
            )
        if self._queue is None or request is None:
            self._publish(partial, final)
            return
        request.add_finalize_fn(lambda: self._publish(partial, final))
        self._queue.schedule_async_request(request)

    def poll(self) -> None:
        """Publishes an asynchronous save that has ended since; never waits for one."""
        if self._queue is not None:
            self._queue.maybe_finalize_async_calls(blocking=False)

    def finalize(self) -> None:
        """Waits for an asynchronous save that is still under way."""
        if self._queue is not None:
            self._queue.maybe_finalize_async_calls(blocking=True)

    def close(self) -> None:
        self.finalize()
        if self._queue is not None:
            self._queue.close()

    def load(self, path: Path) -> None:
        """Loads model, optimizer and learning-rate schedule into the policy, from whatever layout saved them.

        Raises ValueError where the checkpoint was saved by the other kind of optimizer.
        """
        weights = str(path / WEIGHTS)
        saved = dist_checkpointing.load_content_metadata(weights) or {}
        ours = self._content_metadata()
        if saved.get(_OPTIMIZER_KIND) != ours[_OPTIMIZER_KIND]:
            raise ValueError(
                f"{path} was saved with optimizer.use_distributed_optimizer={saved.get(_OPTIMIZER_KIND)}: "
                "set the same to continue from it"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = dist_checkpointing.load(
                self._sharded_state_dict(is_loading=True), weights, TorchDistLoadShardedStrategy()
            )
        for index, chunk in enumerate(self._policy.chunks):
            unwrap(chunk).load_state_dict(state[f"model{index}"])
        self._policy.optimizer.load_state_dict(state["optimizer"])
        self._policy.scheduler.load_state_dict(state["scheduler"])

    def _publish(self, partial: Path, final: Path) -> None:
        """The rename makes the checkpoint exist; older ones go only after it."""
        dist.barrier()
        if dist.get_rank() == 0:
            for root, _, files in os.walk(partial):
                for name in files:
                    _sync(Path(root) / name)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            _sync(final.parent)
            kept = sorted(path for path in self._folder.glob("step_*") if _NAME.fullmatch(path.name))
            for old in kept[: -self._keep_last]:
                shutil.rmtree(old, ignore_errors=True)
        dist.barrier()

    def _content_metadata(self) -> dict[str, Any]:
        return {
            # the only sharding of the distributed optimizer that loads on another layout
            "distrib_optim_sharding_type": "fully_reshardable",
            "distrib_optim_fully_reshardable_mem_efficient": False,
            "singleton_local_shards": False,
            "chained_optim_avoid_prefix": True,
            _OPTIMIZER_KIND: self._policy.uses_distributed_optimizer,
        }

    def _sharded_state_dict(self, is_loading: bool) -> dict[str, Any]:
        metadata = self._content_metadata() | {"dp_cp_group": self._policy.groups.dp_cp}
        models = {
            f"model{index}": unwrap(chunk).sharded_state_dict(metadata=metadata)
            for index, chunk in enumerate(self._policy.chunks)
        }
        optimizer = self._policy.optimizer.sharded_state_dict(
            models if len(models) > 1 else models["model0"], is_loading=is_loading, metadata=metadata
        )
        return models | {"optimizer": optimizer, "scheduler": self._policy.scheduler.state_dict()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
