"""What was found out about one thing, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

OK, NOTE, WARNING, PROBLEM = "ok", "note", "warning", "problem"


@dataclass(frozen=True)
class Finding:
    """status: ok | note (as it is, no worse) | warning (works, slower or not for long) | problem (does not work).

    fix: what to do, if anything.
    """

    area: str
    subject: str
    status: str
    text: str
    fix: str | None = None


def exit_code(findings: Iterable[Finding]) -> int:
    """1 if anything is a problem, else 0."""
    return int(any(finding.status == PROBLEM for finding in findings))
