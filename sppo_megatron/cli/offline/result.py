"""The result of an evaluation: a table for the terminal, JSON, and the files that `sppo report` reads."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sppo_megatron.data.atomic_file import write_atomically
from sppo_megatron.train.evaluation.measures import Estimate
from sppo_megatron.train.evaluation.metrics import Findings, evaluation_metrics
from sppo_megatron.train.provenance import package_versions

RESULT = "result.json"
ALL = "all"  # every evaluation set together
INTERVALS = "95%, over prompts; see docs/evaluation.md"


@dataclass(frozen=True)
class Result:
    """model, data: path and digest. settings: how the answers were sampled and scored. findings: by evaluation set."""

    model: dict[str, Any]
    data: dict[str, Any]
    settings: dict[str, Any]
    findings: dict[str | None, Findings]


def write_result(folder: Path, result: Result, config: str) -> None:
    """result.json, and metrics.jsonl and config.yaml as a run has them. config: the configuration in YAML."""
    record = {
        "model": result.model,
        "data": result.data,
        "settings": result.settings,
        "intervals": INTERVALS,
        "sets": {name or ALL: _plain(findings) for name, findings in result.findings.items()},
        "command": shlex.join(["sppo", "evaluate", *sys.argv[1:]]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": sys.version.split()[0], **package_versions()},
    }
    line = {"eval_step": 0, "eval_iteration": 0, **evaluation_metrics(result.findings)}
    write_atomically(folder / "config.yaml", config)
    write_atomically(folder / "metrics.jsonl", json.dumps(line) + "\n")
    write_atomically(folder / RESULT, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def print_result(folder: Path, result: Result, console: Console | None = None) -> None:
    """A row for each estimate, a column for each evaluation set."""
    console = console or Console()
    sets = list(result.findings) if len(result.findings) != 2 else [None]  # a single one is all there is
    table = Table("", *[name or ALL for name in sets], title=f"{result.model['path']}, 95% intervals over prompts")
    for name in result.findings[None].estimates:
        table.add_row(name, *[_written(result.findings[each].estimates.get(name)) for each in sets])
    for name in result.findings[None].counts:
        table.add_row(name, *[f"{result.findings[each].counts[name]:.4g}" for each in sets])
    console.print(table)
    console.print(f"wrote {folder / RESULT}", markup=False, highlight=False, soft_wrap=True)


def _plain(findings: Findings) -> dict[str, Any]:
    return {"estimates": {name: asdict(e) for name, e in findings.estimates.items()}, **findings.counts}


def _written(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    ends = "" if estimate.low is None or estimate.high is None else f" ({estimate.low:.3f} to {estimate.high:.3f})"
    return f"{estimate.value:.3f}{ends}"
