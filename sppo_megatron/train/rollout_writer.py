"""The run's rollout files, written while it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from sppo_megatron.data.rollout_file import iteration_name, write_groups
from sppo_megatron.types import Group


class RolloutWriter:
    """One file for each iteration, by one rank, in a thread: compression and the disk hold no step up.

    A file is there as a whole or not at all. `settle` before anything is saved that the run would continue behind it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollout-file")
        self._pending: Future[None] | None = None

    def path(self, iteration: int) -> Path:
        """Where an iteration's groups are, or will be."""
        return self.folder / f"{iteration_name(iteration)}.parquet"

    def write(self, iteration: int, groups: Sequence[Group]) -> None:
        """Begins to write, once the file before is there. The groups must not change. Raises as `settle`."""
        self.settle()
        self._pending = self._thread.submit(write_groups, self.path(iteration), groups)

    def settle(self) -> None:
        """Waits until what was begun is on the disk. Raises what kept it from being written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Lets what was begun come to its end; of a run that failed, too."""
        self._thread.shutdown()
