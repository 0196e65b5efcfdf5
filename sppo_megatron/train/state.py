"""Where a run stands: counters, and the rollouts of an iteration that was stopped between two mini-batches."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from sppo_megatron.data.atomic_file import link_file
from sppo_megatron.data.rollout_file import read_groups
from sppo_megatron.errors import ConfigError
from sppo_megatron.types import Group

_COUNTERS = "trainer_state.json"
_ROLLOUTS = "rollouts.parquet"
_OLD_LOG_PROBS = "old_log_probs.npy"


@dataclass
class TrainerState:
    """step: optimizer steps done. iteration: the current one, from 0. minibatch: how many of it are done.

    has_rollouts: whether the rollouts of the current iteration lie beside.
    evaluation_before, evaluation_last: the metrics of the evaluation before training and of the latest one.
    evaluation_due: whether the evaluation before `iteration` is still to be made.
    iteration_metrics: what is logged with every step of the current iteration.
    best_value, best_step: the highest of the metric that checkpoint.keep_best names, and the step it was found at.
    """

    step: int = 0
    iteration: int = 0
    minibatch: int = 0
    has_rollouts: bool = False
    evaluation_due: bool = False
    evaluation_before: dict[str, float] = field(default_factory=dict)
    evaluation_last: dict[str, float] = field(default_factory=dict)
    iteration_metrics: dict[str, float] = field(default_factory=dict)
    best_value: float | None = None
    best_step: int = 0

    def note_value(self, value: float | None) -> None:
        """value: of the metric that keep_best names, at the present step; None if it has none there."""
        if value is not None and (self.best_value is None or value > self.best_value):
            self.best_value, self.best_step = value, self.step

    def write(self, folder: Path) -> None:
        """Writes the counters."""
        (folder / _COUNTERS).write_text(json.dumps(asdict(self), indent=2))

    @staticmethod
    def write_iteration(folder: Path, rollouts: Path, old_log_probs: np.ndarray) -> None:
        """Adds an iteration that was begun: a link to the file of its groups, and the frozen log π_t, float32 [T]."""
        link_file(rollouts, folder / _ROLLOUTS)
        np.save(folder / _OLD_LOG_PROBS, old_log_probs)

    @staticmethod
    def read(folder: Path) -> TrainerState:
        """Raises ConfigError if the folder holds no readable state."""
        try:
            return TrainerState(**json.loads((folder / _COUNTERS).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{folder} is no checkpoint of this trainer: {error}") from error

    def read_groups(self, folder: Path) -> list[Group]:
        """The groups of the interrupted iteration."""
        return read_groups(folder / _ROLLOUTS)

    @staticmethod
    def restore_rollouts(folder: Path, rollouts: Path) -> None:
        """Gives the file of the interrupted iteration's groups its place among the run's rollouts again."""
        link_file(folder / _ROLLOUTS, rollouts)

    def read_old_log_probs(self, folder: Path) -> np.ndarray:
        """log π_t of the interrupted iteration: float32 [T] nats."""
        return np.load(folder / _OLD_LOG_PROBS)
