"""Groups, batch by batch, into a rollout file that a kill does not lose."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from sppo_megatron.cli.offline.batches import Batches
from sppo_megatron.cluster.consensus import agreed, of_first_rank
from sppo_megatron.data.resumable_file import ResumableFile
from sppo_megatron.data.rollout_file import group_line
from sppo_megatron.train.tracking.console import ProgressDisplay
from sppo_megatron.types import Group

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Output:
    """Where the groups go. overwrite: a file that is there is replaced. progress: whether a bar is shown."""

    path: Path
    overwrite: bool = False
    progress: bool = True


class BatchWriter:
    """Writes the groups of a shard's batches, one line each, by rank 0. Every rank has one; its methods are collective
    inside of a process group, and work without one.

    settings: see ResumableFile. Raises ConfigError if the output can't be written or continued.
    """

    def __init__(self, output: Output, settings: Mapping[str, Any], batches: Batches) -> None:
        self._output = output
        self._batches = batches
        self._is_main = not dist.is_initialized() or dist.get_rank() == 0
        settings = {**settings, "batch_size": batches.batch_size, "shard": [batches.shard.index, batches.shard.count]}
        self._file = agreed(lambda: ResumableFile(output.path, settings, output.overwrite) if self._is_main else None)
        finished = of_first_rank(batches.finished(self._file.num_lines) if self._file is not None else 0)
        self._todo = batches.of_shard[finished:]

    def write(self, make_groups: Callable[[int], tuple[list[Group], Mapping[str, float]]]) -> None:
        """All batches that aren't there yet. make_groups(batch): its groups, one for each item, and metrics to show;
        every rank calls it."""
        total = self._batches.num_items
        done = total - sum(len(self._batches.items(batch)) for batch in self._todo)
        if done:
            logger.info("continuing %s behind %d of %d groups", self._output.path, done, total)
        if self._file is not None:
            self._file.keep_lines(done)
        with ProgressDisplay(total, done, self._is_main and self._output.progress, unit="group") as display:
            for batch in self._todo:
                groups, metrics = make_groups(batch)
                if self._file is not None:
                    self._file.append(map(group_line, groups))
                done += len(groups)
                display.update(done, metrics)
        if self._file is not None:
            self._file.finish()
            logger.info("wrote %s: %d groups", self._output.path, total)
