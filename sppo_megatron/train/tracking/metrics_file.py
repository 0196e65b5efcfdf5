"""metrics.jsonl: one JSON object per line, appended as the run goes, every step exactly once also over resumes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
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
            new.writelines(line.rstrip("\n").encode() + b"\n" for line in old if _step_of(_object(line)) <= step)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115

    def close(self) -> None:
        self._file.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """All lines of a metrics.jsonl, in order. A torn last line is left out."""
    return [values for _, values in read_objects(path) if values is not None and _step_of(values) < math.inf]


def read_objects(path: str | Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(line number from 1, object) for every line that isn't blank; None for one that is not a whole JSON object.

    Lines are read one at a time, so the file may be larger than memory.
    """
    with open(path, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, _object(line)


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


def _object(line: str) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _step_of(values: Mapping[str, Any] | None) -> float:
    """The line's step, infinity if it has none."""
    step = None if values is None else values.get("step", values.get("eval_step"))
    return math.inf if type(step) is not int else step
