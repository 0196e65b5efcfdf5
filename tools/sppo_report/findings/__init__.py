"""Warnings about a run: what was seen, what it means, what to try."""

from __future__ import annotations

from sppo_report.findings.events import find_events
from sppo_report.findings.finding import Finding
from sppo_report.findings.sustained import find_sustained
from sppo_report.findings.trends import find_trends
from sppo_report.run_folder import Run

__all__ = ["Finding", "find_warnings"]


def find_warnings(run: Run) -> list[Finding]:
    """Everything in the run's metrics that deserves a look: what still holds at its end first."""
    return sorted([*find_sustained(run), *find_trends(run), *find_events(run)], key=lambda finding: not finding.is_now)
