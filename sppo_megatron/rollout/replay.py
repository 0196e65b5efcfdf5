"""Stored rollouts instead of generated ones: offline training, debugging, and following another implementation."""

from __future__ import annotations

import logging
from pathlib import Path

from sppo_megatron.data.rollout_file import iteration_files, read_groups, summarize
from sppo_megatron.data.sources import LoadedSource
from sppo_megatron.errors import ConfigError
from sppo_megatron.rollout.source import MadeBefore, SourceState
from sppo_megatron.types import Group

logger = logging.getLogger(__name__)


class Replay(MadeBefore):
    """A GroupSource that reads them from rollout files. A pure function of the iteration: a resume needs no state.

    path: one file, or a folder whose `iteration_*` files (.parquet, .jsonl), in the order of their names, are
    iterations 0, 1, ...
    groups_per_iteration: of one file, iteration i takes groups i·n to (i+1)·n; of a folder, the first n of its i-th
    file. None takes the whole file: of one file, the same groups in every iteration.
    iterations: how many will be asked for, if that is known.

    Every line of JSONL that will be used is checked here, before anything expensive starts; binary files are checked by
    their checksums as they are read. Raises ConfigError if there is nothing to read, and ValueError for a broken line,
    an empty file, or fewer groups than the iterations need.
    """

    def __init__(
        self, path: str | Path, groups_per_iteration: int | None = None, iterations: int | None = None
    ) -> None:
        if groups_per_iteration is not None and groups_per_iteration < 1:
            raise ConfigError(f"groups_per_iteration must be at least 1 or None, got {groups_per_iteration}")
        self.sources: list[LoadedSource] = []
        self.path = Path(path)
        self.groups_per_iteration = groups_per_iteration
        self.is_folder = self.path.is_dir()
        self.files = iteration_files(self.path) if self.is_folder else [self.path]
        if self.is_folder and not self.files:
            raise ConfigError(
                f"rollout.path={self.path} is a folder without iteration_*.parquet or iteration_*.jsonl files"
            )
        if not self.is_folder and not self.path.is_file():
            raise ConfigError(f"rollout.path={self.path} does not exist")
        if self.is_folder and iterations is not None:
            self._check_enough(len(self.files), iterations)
            self.files = self.files[:iterations]
        self._summaries = [summarize(file) for file in self.files]
        self._responses_of_groups = [summary.responses for summary in self._summaries]
        self._check_files()
        if iterations is not None:
            self._check_enough(self.available_iterations, iterations)

    @property
    def available_iterations(self) -> int | None:
        """How many iterations there are rollouts for; None if one whole file serves every iteration."""
        if self.is_folder:
            return len(self.files)
        if self.groups_per_iteration is None:
            return None
        return len(self._responses_of_groups[0]) // self.groups_per_iteration

    def groups(self, iteration: int) -> list[Group]:
        """The stored groups of this iteration (from 0), in file order. Raises IndexError past the last iteration."""
        file, start, stop = self._place(iteration)
        return read_groups(self.files[file], start, stop)

    def responses_of_groups(self, iteration: int) -> list[int]:
        """The number of responses of each group of this iteration."""
        file, start, stop = self._place(iteration)
        return self._responses_of_groups[file][start:stop]

    def bounds(self) -> tuple[int, int]:
        """See StoredGroups: of all the files."""
        return max(s.largest_id for s in self._summaries), max(s.longest for s in self._summaries)

    def next(self, iteration: int) -> list[Group]:
        """See GroupSource: `groups(iteration)`."""
        return self.groups(iteration)

    def state(self) -> SourceState:
        """See GroupSource: the iteration says it all."""
        return SourceState()

    def load_state(self, state: SourceState) -> None:
        """See GroupSource."""

    def _place(self, iteration: int) -> tuple[int, int, int | None]:
        """(file, first group, end) of an iteration."""
        available = self.available_iterations
        if iteration < 0 or (available is not None and iteration >= available):
            raise IndexError(f"iteration {iteration} of rollout.path={self.path}, which has {available} iterations")
        n = self.groups_per_iteration
        if self.is_folder:
            return iteration, 0, n
        return (0, 0, None) if n is None else (0, iteration * n, (iteration + 1) * n)

    def _check_files(self) -> None:
        n = self.groups_per_iteration
        for file, counts in zip(self.files, self._responses_of_groups, strict=True):
            if not counts:
                raise ConfigError(f"{file} has no groups")
            if n is not None and len(counts) < n:
                raise ConfigError(
                    f"{file} has {len(counts)} groups, fewer than the {n} of one iteration; "
                    f"set train.prompts_per_iteration={len(counts)} or null"
                )
        left_out = sum(len(counts) - n for counts in self._responses_of_groups) if self.is_folder and n else 0
        if left_out:
            logger.warning("%s: %d groups are beyond the first %d of their file and not used", self.path, left_out, n)

    def _check_enough(self, available: int | None, iterations: int) -> None:
        if available is None or available >= iterations:
            return
        if self.is_folder:
            have = f"{available} files, one per iteration"
        else:
            have = f"{len(self._responses_of_groups[0])} groups, {self.groups_per_iteration} per iteration"
        raise ConfigError(
            f"train.iterations={iterations}, but rollout.path={self.path} has rollouts for {available} ({have}); "
            f"set train.iterations={available} or less, or add rollouts"
        )
