"""Checkpoints of a run: the policy, and beside it what the trainer goes on from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from sppo_megatron.rollout.rounds import Rounds
from sppo_megatron.rollout.source import SourceState
from sppo_megatron.train.evaluation.evaluator import Evaluator
from sppo_megatron.train.rollout_writer import RolloutWriter
from sppo_megatron.train.state import TrainerState
from sppo_megatron.types import Group


class Checkpointer(Protocol):
    """Saves the policy together with what write_host_state writes on rank 0."""

    def save(
        self, step: int, write_host_state: Callable[[Path], None], best: int = 0, *, reshardable: bool = True
    ) -> None: ...

    def poll(self) -> None: ...

    def finalize(self) -> None: ...

    def load(self, path: Path) -> None: ...

    def close(self) -> None: ...


@dataclass
class Saving:
    """Every method is collective. rollout_writer: of rank 0, None on the others.

    saved_step: the step whose checkpoint is complete, -1 if none is.
    """

    checkpointer: Checkpointer
    rollout_writer: RolloutWriter | None
    saved_step: int = -1

    def save(
        self,
        state: TrainerState,
        rollouts: Rounds,
        evaluator: Evaluator | None,
        old_log_probs: np.ndarray | None = None,
        *,
        reshardable: bool = True,
    ) -> None:
        """Saves unless this very step is saved already.

        old_log_probs: the frozen log π_t of the iteration that was begun, float32 [T], which is saved with its
        rollouts; None between two. reshardable: whether it is to load in every layout.
        What led here is on the disk then: a run that continues doesn't make it again.
        """
        writer = self.rollout_writer
        if writer is not None:
            writer.settle()
        if state.step == self.saved_step:
            return
        state = replace(state, has_rollouts=old_log_probs is not None)
        source = rollouts.state()

        def write(folder: Path) -> None:
            if old_log_probs is not None and writer is not None:
                state.write_iteration(folder, writer.path(state.iteration), old_log_probs)
            state.write(folder)
            source.write(folder)
            if evaluator is not None:
                evaluator.write(folder)

        self.checkpointer.save(state.step, write, best=state.best_step, reshardable=reshardable)
        self.saved_step = state.step

    def take_up(
        self, folder: Path, state: TrainerState, rollouts: Rounds, evaluator: Evaluator | None
    ) -> tuple[list[Group], np.ndarray] | None:
        """Puts everything back to where the checkpoint was made. state: as it was read from there.

        Returns the groups of the iteration that was begun, and their frozen log π_t; None if it lies between two.
        """
        self.saved_step = state.step
        self.checkpointer.load(folder)
        if evaluator is not None:
            evaluator.read(folder)
        rollouts.load_state(SourceState.read(folder))
        if not state.has_rollouts:
            return None
        if self.rollout_writer is not None:
            state.restore_rollouts(folder, self.rollout_writer.path(state.iteration))
        return state.read_groups(folder), state.read_old_log_probs(folder)
