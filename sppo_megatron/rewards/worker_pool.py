"""Runs rewards in worker processes: one that raises, hangs or kills its process costs its own call only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from sppo_megatron.cluster.helper_processes import SpawnSessions
from sppo_megatron.cluster.interrupt import undivided
from sppo_megatron.config import RewardConfig
from sppo_megatron.rewards import worker
from sppo_megatron.rewards.scorer import Outcome

logger = logging.getLogger(__name__)

Call = tuple[tuple[Any, ...], dict[str, Any]]  # arguments by place, and by name

START_TIMEOUT_S = 600.0  # the imports of a reward function on a busy node
STALL_TIMEOUT_S = 120.0  # beyond a call's own timeout: a worker's restart


class WorkerPool:
    """config.num_workers processes, started at the first call, reused, and stopped by `close`.

    load: returns the reward in a worker, to which it is sent.
    """

    def __init__(self, config: RewardConfig, load: Callable[[], worker.Reward]) -> None:
        self.config = config
        self._load = load
        self._pool: ProcessPool | None = None

    def run(self, calls: Sequence[Call]) -> list[Outcome]:
        """The outcome of every call, in order. Raises RuntimeError only if no worker can be started at all."""
        outcomes: list[Outcome | None] = [None] * len(calls)
        pending = list(range(len(calls)))
        while pending:
            pending = self._run_together(pending, calls, outcomes)
            # Left over only if the pool broke: it does when a worker dies before its task was seen to begin, and can't
            # say which task that was. It was one of the oldest, so those run alone: then the blame is certain.
            alone, pending = pending[: self.config.num_workers], pending[self.config.num_workers :]
            for place in alone:
                if self._run_together([place], calls, outcomes):
                    outcomes[place] = Outcome(None, None, "the worker process died")
        return [outcome for outcome in outcomes if outcome is not None]

    def close(self) -> None:
        """Stops the workers, whatever they are doing. The pool may be used again; it then starts new ones."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def _run_together(self, places: list[int], calls: Sequence[Call], outcomes: list[Outcome | None]) -> list[int]:
        """Fills in the outcomes of these calls; returns those still without one because the pool broke."""
        pool = self._started()
        try:
            futures = [pool.schedule(worker.call, args=calls[place], timeout=self.config.timeout_s) for place in places]
        except RuntimeError:  # it broke after its last call
            self.close()
            return places
        broken = False
        for place, future in zip(places, futures, strict=True):
            if not broken:
                try:
                    outcomes[place] = self._wait(future)
                except (BrokenProcessPool, CancelledError):
                    broken = True
        if broken:
            self.close()
        return [place for place in places if outcomes[place] is None]

    def _wait(self, future: ProcessFuture) -> Outcome:
        timeout_s = self.config.timeout_s
        try:
            # Calls run in order, so when this one is waited for, it runs or is the next to run.
            return Outcome(*future.result(timeout=timeout_s + STALL_TIMEOUT_S))
        except TimeoutError as error:
            if not future.done():
                raise BrokenProcessPool("the worker pool stalls") from error
            return Outcome(None, None, f"no result within reward.timeout_s={timeout_s:g} seconds")
        except ProcessExpired as error:
            return Outcome(None, None, f"the worker process died (exit code {error.exitcode})")

    def _started(self) -> ProcessPool:
        if self._pool is None:
            self._pool = ProcessPool(
                max_workers=self.config.num_workers,
                context=SpawnSessions(),
                initializer=worker.start,
                initargs=(self._load,),
            )
            try:
                with undivided():  # a process that is told half of what it is to do complains
                    ready = self._pool.schedule(worker.ready)
                ready.result(timeout=START_TIMEOUT_S)
            except (BrokenProcessPool, TimeoutError, CancelledError) as error:
                self.close()
                what = self.config.function or self.config.kind
                raise RuntimeError(
                    f"the worker processes of reward {what!r} don't start ({error or type(error).__name__}); "
                    "it imports in the trainer, so see their messages above for what differs in a new process"
                ) from error
        return self._pool
