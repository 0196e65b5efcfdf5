"""One chart of the report."""

from __future__ import annotations

from dataclasses import dataclass

OTHER = "Other"


@dataclass(frozen=True)
class Panel:
    """One chart. metrics: their names in metrics.jsonl, with * for a number. unit: of the y axis, empty for shares
    and plain numbers.

    advice: what an odd value looks like and what to do about it, empty if nothing can be odd about it alone.
    """

    section: str
    title: str
    metrics: tuple[str, ...]
    meaning: str
    unit: str = ""
    advice: str = ""
