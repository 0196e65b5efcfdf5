"""Which charts a run gets, and in which order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase

from sppo_report.panel import OTHER, Panel
from sppo_report.panel_table import PANELS

# Where a metric that no panel names is shown, by its prefix.
_PREFIXES = {
    "eval_": "Outcome",
    "reward_mean/": "Outcome",
    "named_reward_mean/": "Outcome",
    "seconds_": "Time",
    "sync_": "Time",
} | dict.fromkeys(("rollout_", "mismatch_", "probe_", "fp8_"), "Rollout against trainer")


def panels_for(metrics: Iterable[str]) -> list[Panel]:
    """The panels that have something to show, in their order by section, and in each what was logged for it: its
    metrics, those of them that end in a number (NAME_*), and those of single sources (NAME/SOURCE) behind them. A
    metric of no panel gets one of its own.
    """
    logged = set(metrics)
    found = [replace(panel, metrics=shown) for panel in PANELS if (shown := _shown_in(panel, logged))]
    known = {name for panel in found for name in panel.metrics}
    found += [Panel(_section_of(name), name, (name,), "") for name in sorted(logged - known)]
    return by_section(found)


def by_section(panels: Iterable[Panel]) -> list[Panel]:
    """Sections in the order in which PANELS begins them, OTHER at the end; the order within one stays."""
    sections = [*dict.fromkeys(panel.section for panel in PANELS if panel.section != OTHER), OTHER]
    return sorted(panels, key=lambda panel: sections.index(panel.section))


def _shown_in(panel: Panel, logged: set[str]) -> tuple[str, ...]:
    by_place = [
        (place, "/" in name, len(name), name)
        for name in logged
        for place, pattern in enumerate(panel.metrics)
        if fnmatchcase(name.partition("/")[0], pattern)
    ]
    return tuple(name for *_, name in sorted(by_place, key=lambda found: (found[1], found[0], *found[2:])))


def _section_of(metric: str) -> str:
    return next((section for prefix, section in _PREFIXES.items() if metric.startswith(prefix)), OTHER)
