"""Rows of the rollout files."""

from __future__ import annotations

from pathlib import Path

from sppo_benchmarks.host.row import Row, Work
from sppo_benchmarks.host.workload import Workload
from sppo_megatron.data.rollout_file import read_groups, write_groups
from sppo_megatron.rollout.replay import Replay

_NAME = "iteration_000000.parquet"


def written(work: Workload, folder: Path) -> Work:
    return lambda: write_groups(folder / _NAME, work.groups)


def read(work: Workload, folder: Path) -> Work:
    write_groups(folder / _NAME, work.groups)
    return lambda: read_groups(folder / _NAME)


def looked_through(work: Workload, folder: Path) -> Work:
    """What a replay does before the first iteration."""
    write_groups(folder / _NAME, work.groups)
    return lambda: Replay(folder, None, 1)


def size(work: Workload, folder: Path) -> float:
    return (folder / _NAME).stat().st_size / work.tokens


ROWS = (
    Row("rollout file written", written, 0.1, size, 12),
    Row("rollout file read", read, 0.06),
    Row("replay: files looked through", looked_through, 0.01),
)
