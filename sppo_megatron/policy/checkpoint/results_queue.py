"""Where Megatron's checkpoint writers, in this process or a forked one, leave what they wrote."""

from __future__ import annotations

import pickle
from multiprocessing.managers import SyncManager
from typing import Any

from megatron.core.dist_checkpointing.strategies import filesystem_async

from sppo_megatron.cluster.helper_processes import SpawnWithoutMain, serve_parent


class _PickledQueue:
    """A manager's queue that sees bytes alone. What is put in the clear the manager unpickles, importing torch for it:
    seconds at the first save, and a quarter of a GiB for each rank."""

    def __init__(self, queue: Any):
        self._queue = queue

    def put(self, results: Any) -> None:
        self._queue.put(pickle.dumps(results))

    def get_nowait(self) -> Any:
        """Raises queue.Empty."""
        return pickle.loads(self._queue.get_nowait())


def start_results_queue() -> None:
    """Call it before the first save. Megatron's own manager process would import the whole trainer on every rank, and
    outlive a rank that is killed; ours stays light and ends with its parent."""
    if filesystem_async._results_queue is None:
        manager = SyncManager(ctx=SpawnWithoutMain())
        manager.start(initializer=serve_parent)
        filesystem_async._results_queue = _PickledQueue(manager.Queue())
