"""The loop: generate, score, freeze π_t, train, give the engine the new weights. It knows protocols, not frameworks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Protocol

import numpy as np
from torch import Tensor

from sppo_megatron.batch.build import build_batch, with_old_log_probs
from sppo_megatron.batch.sequences import Sequences, sequences_of
from sppo_megatron.batch.training_batch import TrainingBatch
from sppo_megatron.cluster.interrupt import Interrupted
from sppo_megatron.config import Config
from sppo_megatron.engines.base import Engine
from sppo_megatron.engines.probe import WeightProbe
from sppo_megatron.errors import TrainingError
from sppo_megatron.objective.base import Objective
from sppo_megatron.rewards.scorer import ScoringError
from sppo_megatron.rollout.rounds import Rounds
from sppo_megatron.rollout.source import SourceState
from sppo_megatron.train.evaluation.evaluator import Evaluator, judged_by
from sppo_megatron.train.first_update import check_first_log_ratio
from sppo_megatron.train.preemption import Preempted, PreemptionGuard
from sppo_megatron.train.saving import Saving
from sppo_megatron.train.state import TrainerState
from sppo_megatron.train.tracking.console import ProgressDisplay
from sppo_megatron.train.tracking.profiler import Profiler
from sppo_megatron.train.tracking.tracker import Tracker
from sppo_megatron.types import Group

logger = logging.getLogger(__name__)


class Policy(Protocol):
    """What the trainer needs of π_θ. Every method is collective."""

    objective: Objective

    def compute_log_probs(self, sequences: Sequences) -> tuple[np.ndarray, float]: ...

    def train_step(self, batch: TrainingBatch, units: np.ndarray) -> dict[str, float]: ...

    def export_weights(self) -> Iterator[tuple[str, Tensor]]: ...


@dataclass
class Iteration:
    """groups: scored. batch: of them, with π_t frozen. last_line: what the last step logged."""

    groups: list[Group]
    batch: TrainingBatch
    last_line: dict[str, float] = field(default_factory=dict)


@dataclass
class Trainer:
    """Built of parts; `run` is the whole algorithm. engine: who samples for `rollouts` and for the evaluator.

    begun: the configuration of the iteration that resumed_from lies in; None if that lies between two.
    reference: log π_ref, like Policy.compute_log_probs; None if the objective has no π_ref.
    """

    config: Config
    policy: Policy
    engine: Engine
    rollouts: Rounds
    evaluator: Evaluator | None
    saving: Saving
    tracker: Tracker
    display: ProgressDisplay
    profiler: Profiler
    state: TrainerState = field(default_factory=TrainerState)
    resumed_from: Path | None = None
    begun: Config | None = None
    preemption: PreemptionGuard | None = None
    fp8_probe: Callable[[Sequences, np.ndarray], dict[str, float]] | None = None
    reference: Callable[[Sequences], np.ndarray] | None = None
    probe: WeightProbe | None = None
    begun_iteration: Iteration | None = None

    def run(self) -> None:
        """Trains to the end. Raises Preempted, after saving, if the job was told to stop.

        Wherever that is, the checkpoint is of the last optimizer step that was finished.
        """
        try:
            self._run()
        except Interrupted:
            self._save_and_wait()
            raise Preempted(self.state.step) from None

    def _run(self) -> None:
        self.begun_iteration = self._resume()
        pushed = self._push()
        if self.begun_iteration is None:
            self.state.iteration_metrics = pushed
        if self.resumed_from is None:
            self.state.evaluation_before = self._evaluate()
        elif self.state.evaluation_due:
            self._evaluate()
            self.saving.saved_step = -1  # the checkpoint is written again, with what was found
        while self.state.iteration < self.config.train.iterations:
            self._stop_if_preempted()
            iteration = self.begun_iteration = self.begun_iteration or self._prepare()
            for units in iteration.batch.minibatches[self.state.minibatch :]:
                self._stop_if_preempted()
                self._train_step(units, iteration)
                is_last = self.state.minibatch == len(iteration.batch.minibatches)
                if not is_last and self._is_save_step():
                    self._save()
            self.state.iteration += 1
            self.state.minibatch = 0
            self.begun_iteration = None
            self.state.evaluation_due = self.evaluator is not None and self._is_evaluation()
            self.state.iteration_metrics = self._push()
            if self.state.evaluation_due:
                self._evaluate()
            if iteration.batch.minibatches and (self._is_save_step() or self.state.best_step == self.state.step):
                self._save()
            self.display.update(self.state.iteration, iteration.last_line)
        self._save_and_wait()

    # ---------------------------------------------------------------- the stages of an iteration

    def _prepare(self) -> Iteration:
        """Rollouts with their scores, and log π_t of every response before any update."""
        before = self.rollouts.state()
        try:
            return self._begin_iteration()
        except ScoringError as error:
            self._stop_unscored(before, error)
        except Interrupted:
            self.rollouts.load_state(before)
            raise

    def _begin_iteration(self) -> Iteration:
        with self.profiler.stage("rollouts and scores"):
            groups, made = self.rollouts.next(self.state.iteration)
        scored = time.perf_counter()
        with self.profiler.stage("log-probs"):
            sequences = sequences_of(groups, self.policy.objective.units)
            old_log_probs, entropy = self.policy.compute_log_probs(sequences)
        batch = self._build_batch(groups, sequences, old_log_probs, self.state.step)
        if self.fp8_probe is not None:
            self.state.iteration_metrics |= self.fp8_probe(sequences, old_log_probs)
        if (writer := self.saving.rollout_writer) is not None:
            writer.write(self.state.iteration, with_old_log_probs(groups, sequences, old_log_probs))
        self.tracker.log_rollouts(groups, self.state.step)
        self.state.iteration_metrics |= {
            **made,
            "entropy": entropy,
            "seconds_log_probs": time.perf_counter() - scored,
            **batch.metrics,
        }
        return Iteration(groups, batch)

    def _build_batch(
        self,
        groups: list[Group],
        sequences: Sequences,
        old_log_probs: np.ndarray,
        version: int,
        config: Config | None = None,
    ) -> TrainingBatch:
        """version: of the policy that was frozen. config: of the iteration, if it isn't the run's."""
        config = config or self.config
        return build_batch(
            groups,
            sequences,
            old_log_probs,
            self.policy.objective,
            train=config.train,
            mismatch=config.rollout.mismatch,
            iteration=self.state.iteration,
            version=version,
            ref_log_probs=None if self.reference is None else self.reference(sequences),
        )

    def _push(self) -> dict[str, float]:
        """Gives the engine the new weights. The metrics returned belong to the rollouts that follow."""
        with self.profiler.stage("weights to the engine"):
            self.rollouts.settle()
            started = time.perf_counter()
            num_bytes = self.engine.load_weights(self.policy.export_weights(), self.state.step)
        metrics = {"seconds_sync": time.perf_counter() - started, "sync_bytes": float(num_bytes)}
        if self.probe is not None:
            metrics["probe_mismatch"] = self.probe.check(self.policy.compute_log_probs)
        return metrics

    def _train_step(self, units: np.ndarray, iteration: Iteration) -> None:
        started = time.perf_counter()
        with self.profiler.step(self.state.step + 1):
            metrics = self.policy.train_step(iteration.batch, units)
        seconds = time.perf_counter() - started
        if self.state.minibatch == 0:
            longest = int(iteration.batch.sequences.lengths.max(initial=1))
            check_first_log_ratio(metrics, longest, self.config.precision, self.state.iteration)
        self.state.step += 1
        self.state.minibatch += 1
        tokens = iteration.batch.num_tokens(units)
        # What is known of the whole iteration goes before what a step saw of it.
        line = {"step": self.state.step, "iteration": self.state.iteration, **metrics, **self.state.iteration_metrics}
        line |= {"seconds_train": seconds, "tokens_per_second": tokens / max(seconds, 1e-9)}
        self.tracker.log(line)
        iteration.last_line = line
        self.saving.checkpointer.poll()

    # ---------------------------------------------------------------- evaluation, checkpoints, resume

    def _is_evaluation(self) -> bool:
        interval, done = self.config.eval.interval, self.state.iteration
        return done == self.config.train.iterations or (interval > 0 and done % interval == 0)

    def _evaluate(self) -> dict[str, float]:
        if self.evaluator is None:
            return {}
        try:
            with self.profiler.stage("evaluation"):
                metrics = self.state.evaluation_last = self.evaluator.evaluate(self.state.iteration)
        except ScoringError as error:
            self.state.evaluation_due = False
            self._save_and_wait()
            raise TrainingError(
                f"the reward {error.what} of the evaluation after iteration {self.state.iteration}: {error.why}; fix "
                "the reward and continue with checkpoint.load=latest, which trains on without this evaluation"
            ) from error
        self.state.evaluation_due = False
        self.tracker.log({"eval_step": self.state.step, "eval_iteration": self.state.iteration, **metrics})
        self.state.note_value(judged_by(metrics, self.config.checkpoint.keep_best))
        return metrics

    def _is_save_step(self) -> bool:
        interval = self.config.checkpoint.save_interval
        return interval is not None and self.state.step % interval == 0

    def _save(self) -> None:
        """Inside an iteration with its rollouts and its frozen π_t."""
        old_log_probs = None if self.begun_iteration is None else self.begun_iteration.batch.old_log_probs
        ended = self.state.iteration >= self.config.train.iterations
        reshardable = ended or self.config.checkpoint.reshardable
        with self.profiler.stage("checkpoint"):
            self.saving.save(self.state, self.rollouts, self.evaluator, old_log_probs, reshardable=reshardable)

    def _save_and_wait(self) -> None:
        """Before the run ends: an asynchronous save is complete when this returns."""
        self._save()
        self.saving.checkpointer.finalize()

    def _stop_if_preempted(self) -> None:
        if self.preemption is not None and self.preemption.requested():
            raise Interrupted

    def _stop_unscored(self, before: SourceState, error: ScoringError) -> NoReturn:
        """Defaults and ties would be trained on in silence. Saves the run as it was before these groups.

        Groups that were generated ahead are saved again as such; others are generated again, the same.
        """
        self.rollouts.load_state(before)
        self._save_and_wait()
        raise TrainingError(
            f"the reward {error.what} of iteration {self.state.iteration}, so there is too little to learn from "
            f"(reward.max_failed_share={self.config.reward.max_failed_share:g}): {error.why}; fix the reward and "
            "continue with checkpoint.load=latest, which begins there"
        ) from error

    def _resume(self) -> Iteration | None:
        """Takes up a checkpoint; inside an iteration, with its rollouts and its frozen π_t."""
        if self.resumed_from is None:
            return None
        begun = self.saving.take_up(self.resumed_from, self.state, self.rollouts, self.evaluator)
        if begun is None:
            return None
        groups, old_log_probs = begun
        sequences = sequences_of(groups, self.policy.objective.units)
        version = self.state.step - self.state.minibatch
        return Iteration(groups, self._build_batch(groups, sequences, old_log_probs, version, self.begun))
