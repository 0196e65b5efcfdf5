"""Which runs repeat each other with other seeds: their curves are drawn as one band."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from sppo_report.run_folder import Run

# What changes from one seed to the next, and what changes nothing of what is learned.
_FREE = re.compile(r"(^|\.)(seed|output_dir)$|^logger\.|^checkpoint\.|^profiler\.")


def seed_groups(runs: Sequence[Run]) -> list[int]:
    """For each run the place of the first that has its configuration, apart from seeds and what doesn't matter here.

    A run without a config.yaml is alone.
    """
    first: dict[str, int] = {}
    return [first.setdefault(_settings(run), place) if run.config else place for place, run in enumerate(runs)]


def _settings(run: Run) -> str:
    kept = {key: value for key, value in run.config.items() if not _FREE.search(key)}
    return json.dumps(kept, sort_keys=True, default=str)
