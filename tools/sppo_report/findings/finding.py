"""One warning."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """title: a few words. seen: the numbers and where. meaning, advice: sentences. metric: what to look at.

    is_now: it holds at the end of the run; False if it has passed.
    """

    title: str
    seen: str
    meaning: str
    advice: str
    metric: str
    is_now: bool = True
