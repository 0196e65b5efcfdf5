"""Training checkpoints by Megatron-Core's dist_checkpointing, loadable on another layout (see checkpoint_folder)."""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue, AsyncRequest
from torch.distributed.checkpoint.api import CheckpointException

from sppo_megatron.cluster.consensus import of_all_ranks
from sppo_megatron.cluster.helper_processes import die_with_parent
from sppo_megatron.errors import ConfigError, TrainingError
from sppo_megatron.policy.checkpoint.folder import (
    MODEL,
    checkpoint_path,
    partial_path,
    publish,
    remove,
    remove_leftovers,
)
from sppo_megatron.policy.checkpoint.results_queue import start_results_queue
from sppo_megatron.policy.checkpoint.sharding import (
    choose_sharding,
    content_metadata,
    load_strategy,
    save_strategy,
    sharding_description,
    sharding_of,
)
from sppo_megatron.policy.checkpoint.untrusted import causes, nothing_executed
from sppo_megatron.policy.model.build import unwrap
from sppo_megatron.policy.model.precision import DTYPES
from sppo_megatron.policy.policy import Policy

WEIGHTS = "megatron"  # the sub-folder of dist_checkpointing
_DISTRIBUTED, _DTYPE = "optimizer.use_distributed_optimizer", "precision.dtype"
_FULL = os.strerror(errno.ENOSPC)
_NEXT_TO_NOTHING = 16 << 20  # bytes that are free on a disk that is full
_LONGEST_PROBLEM = 300  # characters; some of Megatron's name every tensor


class Checkpointer:
    """Saves and loads the policy and whatever the trainer adds. Every method but `close` is collective."""

    def __init__(
        self,
        policy: Policy,
        folder: Path,
        *,
        keep_last: int,
        async_save: bool,
        check_folder: Callable[[], None] = lambda: None,
        files: Mapping[str, str] | None = None,
    ):
        """check_folder: called on rank 0 before anything is written or removed; raises if that must not be.

        files: name -> text, of files that go into every checkpoint.
        """
        self._files = files or {}
        self._check_folder = check_folder
        self._policy = policy
        self._folder = folder
        self._keep_last = keep_last
        self._queue = AsyncCallsQueue(persistent=False) if async_save else None
        self._being_written = folder  # by the queue
        self._best = 0
        start_results_queue()

    def save(
        self, step: int, write_host_state: Callable[[Path], None], best: int = 0, *, reshardable: bool = True
    ) -> None:
        """Saves after optimizer step `step`. write_host_state is called on rank 0 with the folder to write into.

        reshardable: whether it is to load in every layout (see `sharding`); always so without a distributed optimizer.
        best: the step whose checkpoint is kept besides the last ones and linked as `best`, 0 if there is none.
        Before the first step there is no optimizer state, and nothing is saved that the run doesn't start with.
        With async_save the tensors are snapshotted now and written while training goes on; `finalize` waits for them.
        Raises TrainingError on every rank if it can't be written, such as on a full disk; earlier checkpoints are
        untouched. So do `poll` and `finalize`.
        """
        self.finalize()
        self._best = best
        if step == 0:
            return
        self._policy.synchronize_parameters()
        final = checkpoint_path(self._folder, step)
        folder = partial_path(final)
        sharding = choose_sharding(self._policy, reshardable)
        description = self._description(sharding)
        with self._reported(final):
            if dist.get_rank() == 0:
                self._check_folder()
                remove_leftovers(self._folder)
                folder.mkdir(parents=True)
                (folder / MODEL).write_text(json.dumps(description, indent=2))
                (folder / WEIGHTS).mkdir()
                for name, text in self._files.items():
                    (folder / name).write_text(text)
                write_host_state(folder)
        with self._reported(final), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            request: AsyncRequest | None = dist_checkpointing.save(
                self._sharded_state_dict(sharding, is_loading=False),
                str(folder / WEIGHTS),
                save_strategy(sharding, self._policy.groups),
                async_sharded_save=self._queue is not None,
                async_strategy="mcore",
                content_metadata=content_metadata(sharding),
            )
        if self._queue is None or request is None:
            self._publish(final)
            return
        self._being_written = final
        if request.async_fn is not None:  # a rank may have nothing to write
            request = request._replace(async_fn=partial(_end_with_rank, request.async_fn))
        self._queue.schedule_async_request(request)

    def poll(self) -> None:
        """Publishes an asynchronous save that has ended since; never waits for one."""
        self._end_asynchronous_save(blocking=False)

    def finalize(self) -> None:
        """Waits for an asynchronous save that is still under way, and publishes it."""
        self._end_asynchronous_save(blocking=True)

    def close(self) -> None:
        """Gives up an asynchronous save that `finalize` didn't wait for, since the run failed: it stays unpublished.

        Waits for no other rank, which may be the one that failed.
        """
        if self._queue is not None:
            for writer in (call.async_caller.process for call in self._queue.async_calls):
                if writer is not None:
                    writer.kill()
                    writer.join()
            self._queue.async_calls.clear()

    def load(self, path: Path) -> None:
        """Loads the model, the optimizer's moments and the steps of its schedule, from whatever layout saved them.

        Learning rates, betas, ε and weight decay are the present ones, as if the run had always had them.
        Raises ConfigError if it could only be read by running what it names, and if it holds the optimizer as it lay in
        the buffers of ranks that cut the model in another way.
        """
        weights = path / WEIGHTS
        sharding = sharding_of(path, json.loads((path / MODEL).read_text()), self._policy)
        with warnings.catch_warnings(), nothing_executed(weights):
            warnings.simplefilter("ignore")
            state = dist_checkpointing.load(
                self._sharded_state_dict(sharding, is_loading=True),
                str(weights),
                load_strategy(sharding, self._policy.groups),
            )
        for index, chunk in enumerate(self._policy.chunks):
            unwrap(chunk).load_state_dict(state[f"model{index}"])
        optimizer, scheduler = self._policy.optimizer, self._policy.scheduler
        present = [_settings(group) for group in optimizer.param_groups]
        for group in _saved_groups(state["optimizer"]):  # Megatron finds a group again by these, too
            group |= {name: getattr(scheduler, name) for name in ("max_lr", "min_lr") if name in group}
        optimizer.load_state_dict(state["optimizer"])
        for group, settings in zip(optimizer.param_groups, present, strict=True):
            group.update(settings)
        scheduler.num_steps = 0
        scheduler.step(increment=state["scheduler"]["num_steps"])

    def _end_asynchronous_save(self, *, blocking: bool) -> None:
        if self._queue is None or not self._queue.async_calls:
            return
        with self._reported(self._being_written):
            ended = self._queue.maybe_finalize_async_calls(blocking=blocking)
        if ended:
            self._publish(self._being_written)

    def _publish(self, final: Path) -> None:
        with self._reported(final):
            if dist.get_rank() == 0:
                self._check_folder()
                publish(partial_path(final), final, self._keep_last, self._best)

    def _description(self, sharding: str) -> dict[str, Any]:
        dtype = next(name for name, dtype in DTYPES.items() if dtype is self._policy.config.params_dtype)
        known = _description(self._policy.model.description(), self._policy.uses_distributed_optimizer, dtype)
        return known | sharding_description(self._policy, sharding)

    @contextmanager
    def _reported(self, final: Path) -> Iterator[None]:
        """A failure of any rank ends all of them. Collective: also the barrier at its end.

        Raises TrainingError, but on a rank whose own failure is no fault of its storage that very failure.
        """
        failure: BaseException | None = None
        try:
            yield
        except (Exception, CheckpointException) as error:  # torch's own is no Exception
            failure = error
        failed = [
            (rank, problem)
            for rank, problem in enumerate(of_all_ranks(None if failure is None else self._problem(failure)))
            if problem is not None
        ]
        if not failed:
            return
        if isinstance(failure, TrainingError):  # the folder is another job's now
            raise failure
        if dist.get_rank() == 0:
            remove(partial_path(final))
        if failure is not None and not _is_of_storage(failure):
            raise failure
        rank, problem = failed[0]
        full = f"; {shutil.disk_usage(self._folder).free >> 20} MiB are free there" if problem.endswith(_FULL) else ""
        raise TrainingError(
            f"the checkpoint {final} could not be written (rank {rank}: {problem}{full}). "
            f"Earlier ones are untouched: {'make room and ' if full else ''}continue with checkpoint.load=latest"
        ) from failure

    def _problem(self, error: BaseException) -> str:
        """One line, which ends with the system's word for a full disk if it is one.

        A writer process gives the class of its error alone, so the disk itself is asked before anything is removed.
        """
        text = _first_cause(error)
        is_full = shutil.disk_usage(self._folder).free < _NEXT_TO_NOTHING and _is_of_storage(error)
        return f"{text}: {_FULL}" if is_full and not text.endswith(_FULL) else text

    def _sharded_state_dict(self, sharding: str, is_loading: bool) -> dict[str, Any]:
        metadata = content_metadata(sharding) | {"dp_cp_group": self._policy.groups.dp_cp}
        models = {
            f"model{index}": unwrap(chunk).sharded_state_dict(metadata=metadata)
            for index, chunk in enumerate(self._policy.chunks)
        }
        optimizer = self._policy.optimizer.sharded_state_dict(
            models if len(models) > 1 else models["model0"], is_loading=is_loading, metadata=metadata
        )
        return models | {"optimizer": optimizer, "scheduler": self._policy.scheduler.state_dict()}


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """A parameter group's hyperparameters."""
    return {name: value for name, value in group.items() if name not in ("params", "step")}


def _saved_groups(state: Any) -> Iterator[dict[str, Any]]:
    """The parameter groups of a stored optimizer, of several that are chained, too."""
    if isinstance(state, dict):
        yield from state.get("param_groups", ())
        for part in state.values():
            yield from _saved_groups(part)
    elif isinstance(state, list):
        for part in state:
            yield from _saved_groups(part)


def _first_cause(error: BaseException) -> str:
    """One line; of torch's report on many ranks, what one of them met."""
    found = next((part for part in causes(error) if isinstance(part, OSError)), error)
    return (str(found).strip() or type(found).__name__).splitlines()[-1][:_LONGEST_PROBLEM]


def _is_of_storage(error: BaseException) -> bool:
    """True if a disk is full, gone, read-only or failing; what torch's writers report is of files alone."""
    return any(isinstance(part, (OSError, CheckpointException)) for part in causes(error))


def _end_with_rank(write: Callable[..., None], *arguments: Any, **keywords: Any) -> None:
    """What an asynchronous writer runs. One that outlived its rank would write into the folder of the next run."""
    die_with_parent()
    write(*arguments, **keywords)


def check_fits(path: Path, model: dict[str, Any], use_distributed_optimizer: bool, dtype: str | None = None) -> None:
    """Raises ConfigError if a checkpoint is of another model or optimizer, saying what differs and what to set.

    model: the description of the `MappedModel`.
    Every parallel size may be another one. But the two kinds of optimizer store their state in different forms, the
    plain one in one for each dtype (precision.dtype, None: not compared).
    """
    saved = json.loads((path / MODEL).read_text())
    ours = _description(model, use_distributed_optimizer, dtype)
    if use_distributed_optimizer or dtype is None:
        del ours[_DTYPE]
    differing = [key for key, value in ours.items() if saved.get(key) != value]
    if not differing:
        return
    problems = [f"{key} is {saved.get(key)} there and {ours[key]} here" for key in differing]
    settings = [f"{key}={str(saved.get(key)).lower()}" for key in differing if key in (_DISTRIBUTED, _DTYPE)]
    advice = f". Continue it with {' '.join(settings)}" if len(settings) == len(differing) else ""
    raise ConfigError(f"the checkpoint {path} does not fit this run: {'; '.join(problems)}{advice}")


def _description(model: dict[str, Any], use_distributed_optimizer: bool, dtype: str | None) -> dict[str, Any]:
    return model | {_DISTRIBUTED: use_distributed_optimizer, _DTYPE: dtype}
