"""What each rank did when, of the steps that `profiler.steps` recorded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sppo_report.run_folder import Run, finite

MAX_RANKS = 64  # that are shown, spread evenly
MAX_STAGES = 200  # of a rank, from the start

Stage = tuple[str, float, float]  # name, start and end in seconds


def timeline(run: Run) -> dict[str, Any] | None:
    """JSON of the recording that began last, None if there is none. Files that can't be read are named in the problems.

    seconds: of all of it. num_ranks: that were recorded. ranks: [{rank, stages: [[name, start, seconds], ...]}, ...],
    start counted from the first stage of any rank. The clocks are those of the machines.
    """
    recordings: dict[str, dict[int, list[Stage]]] = {}
    for path in sorted((run.folder / "profile").glob("rank_*_stages.json")):
        found = _read(path)
        if found is None:
            run.problems.append(f"{path.name} holds no stages of a rank")
        elif found[1]:
            recordings.setdefault(path.stem.partition("_steps_")[2], {})[found[0]] = found[1]
    if not recordings:
        return None
    ranks = max(recordings.values(), key=_start)
    first = _start(ranks)
    shown = sorted(ranks)
    if len(shown) > MAX_RANKS:
        shown = [shown[place * len(shown) // MAX_RANKS] for place in range(MAX_RANKS)]
    return {
        "seconds": max(end for stages in ranks.values() for _, _, end in stages) - first,
        "num_ranks": len(ranks),
        "ranks": [{"rank": rank, "stages": _shown(ranks[rank], first)} for rank in shown],
    }


def _start(ranks: dict[int, list[Stage]]) -> float:
    return min(start for stages in ranks.values() for _, start, _ in stages)


def _shown(stages: Sequence[Stage], first: float) -> list[list[str | float]]:
    return [[name, round(start - first, 4), round(end - start, 4)] for name, start, end in stages[:MAX_STAGES]]


def _read(path: Path) -> tuple[int, list[Stage]] | None:
    """The rank and its stages, None if the file holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8", errors="replace"))
        rank = content["rank"]
        stages = [(str(name), finite(start), finite(end)) for name, start, end in content["stages"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    whole = [(name, a, b) for name, a, b in stages if a is not None and b is not None and a <= b]
    return (rank, whole) if type(rank) is int and len(whole) == len(stages) else None
