"""Training checkpoints by Megatron-Core's dist_checkpointing, loadable on another layout (see checkpoint_folder)."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue, AsyncRequest
from megatron.core.dist_checkpointing.strategies.torch import (
    TorchDistLoadShardedStrategy,
    TorchDistSaveShardedStrategy,
)
from torch.distributed.checkpoint.api import CheckpointException

from sppo_megatron.conversion.architecture import Architecture
from sppo_megatron.errors import TrainingError
from sppo_megatron.policy.checkpoint_folder import checkpoint_path, partial_path, publish, remove_partial
from sppo_megatron.policy.model import unwrap
from sppo_megatron.policy.policy import Policy
from sppo_megatron.processes import SpawnWithoutMain, die_with_parent

WEIGHTS = "megatron"  # the sub-folder of dist_checkpointing
MODEL = "model.json"  # what the weights are the weights of


class Checkpointer:
    """Saves and loads the policy and whatever the trainer adds. Every method is collective."""

    def __init__(self, policy: Policy, folder: Path, *, keep_last: int, async_save: bool):
        self._policy = policy
        self._folder = folder
        self._keep_last = keep_last
        self._queue = AsyncCallsQueue(persistent=False) if async_save else None
        _start_results_queue()

    def save(self, step: int, write_host_state: Callable[[Path], None]) -> None:
        """Saves after optimizer step `step`. write_host_state is called on rank 0 with the folder to write into.

        With async_save the tensors are snapshotted now and written while training goes on; `finalize` waits for them.
        Raises TrainingError on every rank where it can't be written (a full disk); earlier checkpoints are untouched.
        """
        self.finalize()
        self._policy.synchronize_parameters()
        final = checkpoint_path(self._folder, step)
        partial = partial_path(final)
        with self._reported(final):
            if dist.get_rank() == 0:
                remove_partial(self._folder)
                (partial / WEIGHTS).mkdir(parents=True)
                write_host_state(partial)
                (partial / MODEL).write_text(json.dumps(self._description(), indent=2))
        with self._reported(final), warnings.catch_warnings():
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
        """Loads model, optimizer and learning-rate schedule into the policy, from whatever layout saved them."""
        weights = str(path / WEIGHTS)
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
        with self._reported(final):
            if dist.get_rank() == 0:
                publish(partial, final, self._keep_last)

    def _description(self) -> dict[str, Any]:
        return _description(self._policy.architecture, self._policy.uses_distributed_optimizer)

    @contextmanager
    def _reported(self, final: Path) -> Iterator[None]:
        """A failure of any rank becomes one TrainingError on all of them. Collective: also the barrier at its end."""
        problem = None
        try:
            yield
        except (Exception, CheckpointException) as error:  # torch's own is no Exception
            problem = (str(error).strip() or type(error).__name__).splitlines()[-1]
        problems: list = [None] * dist.get_world_size()
        dist.all_gather_object(problems, problem)
        failed = [(rank, text) for rank, text in enumerate(problems) if text is not None]
        if failed:
            free = shutil.disk_usage(self._folder).free
            if dist.get_rank() == 0:
                shutil.rmtree(partial_path(final), ignore_errors=True)
            rank, text = failed[0]
            raise TrainingError(
                f"the checkpoint {final} could not be written (rank {rank}: {text}; {free >> 20} MiB were free there). "
                "Earlier ones are untouched: make room and continue with checkpoint.load=latest"
            )

    def _content_metadata(self) -> dict[str, Any]:
        return {
            # the only sharding of the distributed optimizer that loads on another layout
            "distrib_optim_sharding_type": "fully_reshardable",
            "distrib_optim_fully_reshardable_mem_efficient": False,
            "singleton_local_shards": False,
            "chained_optim_avoid_prefix": True,
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


def _start_results_queue() -> None:
    """Megatron's writers report through a manager process. Its own would import the whole trainer on every rank, and
    outlive a rank that is killed; ours starts light and ends with its parent."""
    if filesystem_async._results_queue is None:
        manager = SyncManager(ctx=SpawnWithoutMain())
        manager.start(initializer=die_with_parent)
        filesystem_async._results_queue = manager.Queue()


def check_fits(path: Path, architecture: Architecture, use_distributed_optimizer: bool) -> None:
    """Raises ValueError where a checkpoint is of another model or the other kind of optimizer, saying what differs."""
    saved = json.loads((path / MODEL).read_text())
    ours = _description(architecture, use_distributed_optimizer)
    differing = [
        f"{key} is {saved.get(key)} there and {value} here" for key, value in ours.items() if saved.get(key) != value
    ]
    if differing:
        raise ValueError(f"the checkpoint {path} does not fit this run: {'; '.join(differing)}")


def _description(architecture: Architecture, use_distributed_optimizer: bool) -> dict[str, Any]:
    values = asdict(architecture)
    del values["rotary_inv_freq"]
    return values | {"optimizer.use_distributed_optimizer": use_distributed_optimizer}
