"""The reference page of all metrics, from the report's panels.

`python -m sppo_report.metric_reference docs/metrics.md` writes it; without a path it is printed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby

from sppo_megatron.config.reference import write_page
from sppo_report.panel import Panel
from sppo_report.panel_table import PANELS
from sppo_report.panels import by_section

_HEAD = """# Metrics

What `metrics.jsonl`, TensorBoard and the report show, what each means, and what to do if it looks odd. Written from the
report's panels by `python -m sppo_report.metric_reference docs/metrics.md`.

A line with `step` is an optimizer step, a line with `eval_step` an evaluation. `iteration` counts from 0. What is
known of a whole iteration (rewards, the gate, seconds of rollouts) stands in each of its steps' lines. s is a
response's log-ratio log π_θ − log π_t, δ its target.
"""
_TABLE = "| metric | unit | meaning | if it looks odd |\n|---|---|---|---|\n"


def main(arguments: Sequence[str]) -> int:
    return write_page(render(), arguments)


def render() -> str:
    """The page in Markdown."""
    sections = groupby(by_section(PANELS), lambda panel: panel.section)
    return _HEAD + "".join(f"\n## {name}\n\n{_TABLE}" + "".join(map(_row, panels)) for name, panels in sections)


def _row(panel: Panel) -> str:
    names = ", ".join(f"`{name}`" for name in panel.metrics)
    cells = (names, panel.unit, panel.meaning, panel.advice)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
