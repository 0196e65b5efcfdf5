"""What a run left in its output folder. A missing file or a broken line is named, and costs nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sppo_megatron.errors import ConfigError
from sppo_megatron.train.tracking.metrics_file import read_objects

Line = Mapping[str, Any]  # one line of metrics.jsonl

BINARY = ".parquet"  # the ending of a rollout file that isn't JSONL
_ROLLOUT_NAME = re.compile(r"iteration_(\d+)")
_NAMED_LINES = 5


@dataclass
class Run:
    """config: the resolved configuration with dotted keys. steps, evaluations: lines of metrics.jsonl, ordered by step;
    every line of steps has integers as step and iteration, and every line of evaluations one as eval_step.

    rollout_files: by iteration. problems: what was missing or broken, as sentences. num_bytes: of all these on disk.
    """

    name: str
    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    steps: list[Line] = field(default_factory=list)
    evaluations: list[Line] = field(default_factory=list)
    rollout_files: dict[int, Path] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    num_bytes: int = 0

    def by_iteration(self) -> dict[int, list[Line]]:
        """The optimizer steps of each iteration, in order."""
        found: dict[int, list[Line]] = {}
        for line in self.steps:
            found.setdefault(line["iteration"], []).append(line)
        return found


def read_run(folder: str | Path, name: str | None = None) -> Run:
    """The run in this output folder.

    Raises ConfigError if the folder is missing or holds nothing of a run.
    """
    folder = Path(folder)
    metrics, config, rollouts = folder / "metrics.jsonl", folder / "config.yaml", folder / "rollouts"
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder: give the output_dir of a run")
    if not any(path.exists() for path in (metrics, config, rollouts)):
        raise ConfigError(
            f"{folder} is not the output_dir of a run: it has neither metrics.jsonl nor config.yaml nor rollouts/"
        )
    run = Run(name or folder.resolve().name, folder)
    run.problems += [f"{path.name} is missing" for path in (metrics, config, rollouts) if not path.exists()]
    if metrics.exists():
        _read_metrics(metrics, run)
    if config.exists():
        run.config = _read_config(config, run.problems)
    for path in (*rollouts.glob("iteration_*.jsonl"), *rollouts.glob(f"iteration_*{BINARY}")):  # the later form wins
        if match := _ROLLOUT_NAME.fullmatch(path.stem):
            run.rollout_files[int(match[1])] = path
    run.rollout_files = dict(sorted(run.rollout_files.items()))
    if rollouts.is_dir() and not run.rollout_files:
        run.problems.append("rollouts/ holds no iteration_NNNNNN.parquet or .jsonl")
    files = [path for path in (metrics, config, *run.rollout_files.values()) if path.exists()]
    run.num_bytes = sum(path.stat().st_size for path in files)
    return run


def names_of(folders: Sequence[str | Path]) -> list[str]:
    """A name for each folder: its last parts, as many as it takes to tell all of them apart."""
    parts = [Path(folder).resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-count:]) for path in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


def finite(value: object) -> float | None:
    """The value as a float, None if it isn't a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def whole_lines(path: Path, problems: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """`read_objects` without the broken lines, which are added to `problems` at the end."""
    broken: list[int] = []
    for number, record in read_objects(path):
        if record is None:
            broken.append(number)
        else:
            yield number, record
    problems += broken_lines(path.name, broken, "not a JSON object")


def broken_lines(file: str, numbers: Sequence[int], what: str) -> list[str]:
    """One sentence that names the first lines and counts the rest, or none at all."""
    if not numbers:
        return []
    named = ", ".join(map(str, numbers[:_NAMED_LINES]))
    more = f" and {len(numbers) - _NAMED_LINES} more" if len(numbers) > _NAMED_LINES else ""
    return [f"{file}: {what} in line{'s' * (len(numbers) > 1)} {named}{more}, left out"]


def _read_metrics(path: Path, run: Run) -> None:
    """A step that is there twice counts once, with its later line."""
    steps: dict[int, Line] = {}
    evaluations: dict[int, Line] = {}
    without, repeated = [], []
    for number, line in whole_lines(path, run.problems):
        is_step = "step" in line
        step, target = (line["step"], steps) if is_step else (line.get("eval_step"), evaluations)
        if type(step) is not int or (is_step and type(line.get("iteration")) is not int):
            without.append(number)
            continue
        if step in target:
            repeated.append(number)
        target[step] = line
    run.steps = [steps[step] for step in sorted(steps)]
    run.evaluations = [evaluations[step] for step in sorted(evaluations)]
    run.problems += broken_lines(path.name, without, "no integer step and iteration")
    if repeated:
        run.problems.append(f"{path.name}: {len(repeated)} steps are there more than once; the later line counts")
    if not steps:
        run.problems.append(f"{path.name} holds no optimizer step")


def _read_config(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
    except yaml.YAMLError as error:
        problems.append(f"{path.name} is not YAML: {' '.join(str(error).split())}")
        return {}
    if not isinstance(config, dict):
        problems.append(f"{path.name} holds no keys")
        return {}
    return dict(_flatten(config, ""))


def _flatten(config: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
