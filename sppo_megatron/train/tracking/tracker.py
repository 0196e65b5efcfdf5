"""Where metrics go: metrics.jsonl always, and every destination that is configured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sppo_megatron.config import LoggerConfig
from sppo_megatron.train.tracking.destinations.base import Destination, Run
from sppo_megatron.train.tracking.destinations.registry import DESTINATIONS
from sppo_megatron.train.tracking.metrics_file import MetricsFile, to_plain
from sppo_megatron.train.tracking.rollout_table import COLUMNS, NAME, rows_of
from sppo_megatron.types import Group


class Tracker:
    """Writes output_dir/metrics.jsonl, and to every destination of tracking/destinations that `config` turns on.

    enabled: whether this rank writes (one does); elsewhere every method does nothing.
    resume_step: the optimizer step of the checkpoint continued from. What was logged after it is dropped and logged
    again, so metrics.jsonl holds every step once. None is a fresh run: an older run's lines in output_dir are dropped.
    run_config: the resolved configuration, which destinations show.
    Raises ConfigError, naming what to install, if a configured package is missing.
    """

    def __init__(
        self,
        output_dir: str | Path,
        config: LoggerConfig,
        *,
        enabled: bool = True,
        resume_step: int | None = None,
        run_config: Mapping[str, Any] | None = None,
    ) -> None:
        self._metrics_file: MetricsFile | None = None
        self._destinations: list[Destination] = []
        self._rollout_rows = config.rollout_rows if enabled else 0
        if not enabled:
            return
        wanted = [kind for kind in DESTINATIONS if kind.is_wanted(config)]
        for kind in wanted:
            kind.check_installed()
        output_dir = Path(output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        run = Run(output_dir, config, resume_step, run_config or {})
        for kind in wanted:
            self._destinations.append(kind.start(run))
        self._metrics_file = MetricsFile(output_dir / "metrics.jsonl")
        self._metrics_file.truncate_after(-1 if resume_step is None else resume_step)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """metrics: names to numbers, with the optimizer step as the integer `step`, or `eval_step` of an evaluation."""
        if self._metrics_file is None:
            return
        self._metrics_file.write(metrics)
        step = int(to_plain(metrics["step"] if "step" in metrics else metrics["eval_step"]))
        numbers = {key: number for key, value in metrics.items() if (number := _number(value)) is not None}
        for destination in self._destinations:
            destination.log(numbers, step)

    def log_rollouts(self, groups: Sequence[Group], step: int) -> None:
        """logger.rollout_rows of these responses, at the optimizer step that their policy has."""
        rows = rows_of(groups, self._rollout_rows)
        for destination in self._destinations if rows else ():
            destination.log_table(NAME, COLUMNS, rows, step)

    def close(self) -> None:
        """Finishes all of them. A second call does nothing."""
        if self._metrics_file is not None:
            self._metrics_file.close()
        for destination in self._destinations:
            destination.close()
        self._metrics_file, self._destinations = None, []


def _number(value: Any) -> float | int | None:
    plain = to_plain(value)
    return plain if isinstance(plain, (int, float)) else None
