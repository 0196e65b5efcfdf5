"""One row of the table: what is measured, at one size, against which target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppo_benchmarks.host.workload import Workload

Work = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """make: of a workload and an empty folder, what is called and timed.

    target: CPU seconds a million response tokens, the most that is wanted; None without one.
    bytes_a_token: what a call left on the disk or sent, over the response tokens; None if that is nothing.
    """

    name: str
    make: Callable[[Workload, Path], Work]
    target: float | None = None
    bytes_a_token: Callable[[Workload, Path], float] | None = None
    bytes_target: float | None = None
