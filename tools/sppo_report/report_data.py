"""Everything the page shows, as JSON: runs, curves, warnings, responses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sppo_report.curves import Curve, curves, thin
from sppo_report.findings import find_warnings
from sppo_report.panels import panels_for
from sppo_report.run_folder import Run
from sppo_report.samples import SampleLimits, shown_iterations
from sppo_report.seeds import seed_groups
from sppo_report.summary import config_rows, stage_seconds, summary_rows
from sppo_report.timeline import timeline
from sppo_report.tokens import TokenTexts, find_tokenizer


def build_report(
    runs: Sequence[Run],
    limits: SampleLimits,
    *,
    tokenizer: Path | None = None,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """JSON of the whole report. tokenizer: a folder, None for the runs' own. advance: called after each rollout file.

    Raises ConfigError if the tokenizer's folder has none, or it can't be read.
    """
    found = [
        _run(run, limits, tokenizer, advance) | {"seed_group": group}
        for run, group in zip(runs, seed_groups(runs), strict=True)
    ]
    logged = {name for run in found for name in run["curves"]}
    return {
        "runs": found,
        "panels": [asdict(panel) for panel in panels_for(logged)],
        "summary": summary_rows(runs),
        "config": config_rows(runs),
    }


def _run(run: Run, limits: SampleLimits, tokenizer: Path | None, advance: Callable[[], None]) -> dict[str, Any]:
    by_metric = curves(run)
    if set(by_metric.get("win_rate_mean", Curve()).values) == {0.5}:  # what is logged without win rates
        del by_metric["win_rate_mean"]
    of_ranks = timeline(run)
    path = find_tokenizer(run, tokenizer)
    iterations = []
    for iteration in shown_iterations(run, limits, None if path is None else TokenTexts(path)):
        iterations.append(iteration)
        advance()
    if iterations and path is None:
        run.problems.append("no tokenizer.json beside the run: responses are shown by token ids; give --tokenizer")
    return {
        "name": run.name,
        "folder": str(run.folder),
        "num_bytes": run.num_bytes,
        "num_iterations": len(run.by_iteration()),
        "num_rollout_files": len(run.rollout_files),
        "problems": run.problems,
        "warnings": [asdict(finding) for finding in find_warnings(run)],
        "stage_seconds": stage_seconds(by_metric),
        "timeline": of_ranks,
        "iteration_starts": _iteration_starts(run),
        "curves": {name: _points(thin(curve)) for name, curve in by_metric.items()},
        "iterations": iterations,
    }


def _iteration_starts(run: Run) -> Mapping[str, list[float]]:
    """The first step of each iteration, thinned like a curve."""
    starts = {iteration: lines[0]["step"] for iteration, lines in run.by_iteration().items()}
    return _points(thin(Curve(list(starts.values()), [float(iteration) for iteration in starts])))


def _points(curve: Curve) -> dict[str, list[float]]:
    points: dict[str, list[float]] = {"steps": list(curve.steps), "values": _short(curve.values)}
    return points if curve.means is None else points | {"means": _short(curve.means)}


def _short(values: Sequence[float]) -> list[float]:
    """Six digits are more than a chart shows."""
    return [float(f"{value:.6g}") for value in values]
