"""metrics.jsonl: one JSON object per line, appended as the run goes, every step exactly once also over resumes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sppo_megatron.data.atomic_file import atomic_file


class MetricsFile:
    """Appends lines; each is on its way to the disk when `write` returns."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  (closed by close)

    def write(self, metrics: Mapping[str, Any]) -> None:
        """One line. Numbers may be Python's, numpy's or tensors of one element; NaN and ±inf become null.

        Raises ValueError without an integer `step` (of an evaluation: `eval_step`): a resume couldn't tell whether to
        keep the line.
        """
        line = {key: to_plain(value) for key, value in metrics.items()}
        step = line.get("step", line.get("eval_step"))
        if type(step) is not int:
            raise ValueError(f"metrics need an integer step, got {step!r}")
        self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()

    def truncate_after(self, step: int) -> None:
        """Keeps the lines up to and including this step, as a resume from its checkpoint must.

        What isn't a whole line (a torn last one) goes too. The file is replaced at once: a crash leaves the old one.
        """
        self._file.close()
        with open(self.path, encoding="utf-8", errors="replace") as old, atomic_file(self.path) as new:
            new.writelines(line.rstrip("\n").encode() + b"\n" for line in old if _step_of(line) <= step)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115

    def close(self) -> None:
        self._file.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """All lines of a metrics.jsonl, in order. A torn last line is left out."""
    with open(path, encoding="utf-8", errors="replace") as lines:
        return [json.loads(line) for line in lines if _step_of(line) < math.inf]


def to_plain(value: Any) -> Any:
    """A JSON value: what has one element becomes a Python number, what isn't finite None."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: to_plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(entry) for entry in value]
    return value


def _step_of(line: str) -> float:
    """The line's step, or infinity where it is not a whole line."""
    try:
        values = json.loads(line)
        return float(values["step"] if "step" in values else values["eval_step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
