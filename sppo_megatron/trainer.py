"""The loop: generate, score, freeze π_t, train, give the engine the new weights. It knows protocols, not frameworks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from sppo_megatron.config import Config
from sppo_megatron.data.batching import Sample, Unit
from sppo_megatron.data.prompts import PromptStream
from sppo_megatron.data.rollout_file import write_groups
from sppo_megatron.data.samples import build_samples, build_units, minibatches, set_old_log_probs
from sppo_megatron.errors import TrainingError
from sppo_megatron.evaluation import Evaluator
from sppo_megatron.objective import degenerate_group_sums, finalize_diagnostics
from sppo_megatron.preemption import Preempted, PreemptionGuard
from sppo_megatron.reward.share import Scorer, score_over_ranks
from sppo_megatron.reward.targets import build_targets
from sppo_megatron.rollout.protocol import RolloutEngine
from sppo_megatron.tracking.console import ProgressDisplay
from sppo_megatron.tracking.tracker import Tracker
from sppo_megatron.trainer_state import TrainerState
from sppo_megatron.types import Group
from sppo_megatron.weight_sync.protocol import WeightSync

logger = logging.getLogger(__name__)

# nats per token that |s| may show before the first update of an iteration, where it is 0 up to rounding
_ROUNDING = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 1e-2}


class Policy(Protocol):
    """What the trainer needs of π_θ. Every method is collective."""

    def compute_log_probs(self, samples: Sequence[Sample]) -> tuple[list[np.ndarray], float]: ...

    def train_step(self, units: Sequence[Unit]) -> dict[str, float]: ...

    def export_weights(self) -> Iterator[tuple[str, Tensor]]: ...


class Checkpointer(Protocol):
    """Saves the policy together with what write_host_state writes on rank 0."""

    def save(self, step: int, write_host_state: Callable[[Path], None]) -> None: ...

    def poll(self) -> None: ...

    def finalize(self) -> None: ...

    def load(self, path: Path) -> None: ...


@dataclass
class Iteration:
    """The rollouts of one iteration with π_t frozen, cut into mini-batches. last_line: what the last step logged."""

    groups: list[Group]
    samples: list[Sample]
    minibatches: list[list[Unit]]
    last_line: dict[str, float] = field(default_factory=dict)


@dataclass
class Trainer:
    """Built of parts; `run` is the whole algorithm. prompts is None where the engine brings its own (replay)."""

    config: Config
    policy: Policy
    rollout: RolloutEngine
    scorer: Scorer | None
    weight_sync: WeightSync
    prompts: PromptStream | None
    evaluator: Evaluator | None
    checkpointer: Checkpointer
    tracker: Tracker
    display: ProgressDisplay
    rollout_folder: Path
    is_main: bool
    state: TrainerState = field(default_factory=TrainerState)
    resumed_from: Path | None = None
    preemption: PreemptionGuard | None = None
    saved_step: int = -1

    def run(self) -> None:
        """Trains to the end. Raises Preempted, after saving, where the job was told to stop."""
        iteration = self._resume()
        if self.resumed_from is None:
            self.state.evaluation_before = self._evaluate()
        while self.state.iteration < self.config.train.iterations:
            self._stop_if_preempted(iteration)
            iteration = iteration or self._prepare()
            for units in iteration.minibatches[self.state.minibatch :]:
                self._stop_if_preempted(iteration)
                self._train_step(units, iteration)
                is_last = self.state.minibatch == len(iteration.minibatches)
                if not is_last and self._is_save_step():
                    self._save(iteration)
            self.state.iteration += 1
            self.state.minibatch = 0
            self.state.iteration_metrics = {}
            self.weight_sync.push(self.policy.export_weights(), self.state.step)
            if self._is_evaluation():
                self._evaluate()
            if iteration.minibatches and self._is_save_step():
                self._save(None)
            self.display.update(self.state.iteration, iteration.last_line)
            iteration = None
        self._save(None)
        self.checkpointer.finalize()

    # ---------------------------------------------------------------- the stages of an iteration

    def _prepare(self) -> Iteration:
        """Rollouts with their scores, and log π_t of every response before any update."""
        started = time.perf_counter()
        prompts = []
        if self.prompts is not None:
            prompts = self.prompts.next()
            self.state.prompt_position = self.prompts.position
        groups = self.rollout.generate(prompts, self.state.iteration)
        generated = time.perf_counter()
        if self.scorer is not None:
            groups = score_over_ranks(self.scorer, groups)
        scored = time.perf_counter()
        iteration = self._build(groups)
        old_log_probs, entropy = self.policy.compute_log_probs(iteration.samples)
        set_old_log_probs(iteration.samples, old_log_probs, self.config.objective)
        if self.is_main:
            write_groups(self.rollout_folder / f"iteration_{self.state.iteration:06d}.jsonl", groups)
        self.state.iteration_metrics |= {
            "entropy": entropy,
            "seconds_rollout": generated - started,
            "seconds_reward": scored - generated,
            "seconds_log_probs": time.perf_counter() - scored,
        }
        return iteration

    def _build(self, groups: list[Group]) -> Iteration:
        c = self.config
        targets = build_targets(groups, c.objective)
        samples = build_samples(groups, targets, c.objective, c.rollout.max_response_length)
        units = build_units(samples, groups, targets, pairwise=c.objective.pairwise is not None)
        if not units:
            logger.warning("iteration %d has nothing to train on: no group has a spread", self.state.iteration)
        batches = minibatches(
            units,
            c.train.minibatch_size,
            c.train.epochs_per_iteration,
            shuffle=c.train.shuffle,
            seed=c.train.seed,
            iteration=self.state.iteration,
        )
        degenerate = finalize_diagnostics(degenerate_group_sums(targets.values, targets.group_ids), {})
        self.state.iteration_metrics |= {
            "degenerate_group_share": degenerate["degenerate_group_share"],
            "reward_errors": float(sum(response.error is not None for group in groups for response in group.responses)),
        }
        return Iteration(groups, samples, batches)

    def _train_step(self, units: list[Unit], iteration: Iteration) -> None:
        started = time.perf_counter()
        metrics = self.policy.train_step(units)
        seconds = time.perf_counter() - started
        if self.state.minibatch == 0:
            self._check_first_log_ratio(metrics, iteration)
        self.state.step += 1
        self.state.minibatch += 1
        tokens = sum(sample.num_tokens for unit in units for sample in unit)
        line = {"step": self.state.step, "iteration": self.state.iteration, **self.state.iteration_metrics, **metrics}
        line |= {"seconds_train": seconds, "tokens_per_second": tokens / max(seconds, 1e-9)}
        self.tracker.log(line)
        iteration.last_line = line
        self.checkpointer.poll()

    def _check_first_log_ratio(self, metrics: dict[str, float], iteration: Iteration) -> None:
        """The first sign of a broken parallel path: π_θ is π_t here, so s must be 0 up to rounding."""
        longest = max((len(sample.response_token_ids) for sample in iteration.samples), default=0)
        bound = _ROUNDING[self.config.precision.dtype] * max(1, longest)
        if metrics["log_ratio_abs_max"] > bound:
            raise TrainingError(
                f"before the first update of iteration {self.state.iteration} the largest |log π_θ − log π_t| is "
                f"{metrics['log_ratio_abs_max']:.3g} nats and should be 0 up to rounding (bound {bound:.3g}): "
                "the training pass does not compute what the log-prob pass does; try another layout and report it"
            )

    # ---------------------------------------------------------------- evaluation, checkpoints, resume

    def _is_evaluation(self) -> bool:
        interval, done = self.config.eval.interval, self.state.iteration
        return done == self.config.train.iterations or (interval > 0 and done % interval == 0)

    def _evaluate(self) -> dict[str, float]:
        if self.evaluator is None:
            return {}
        metrics = self.state.evaluation_last = self.evaluator.evaluate()
        self.tracker.log({"eval_step": self.state.step, "eval_iteration": self.state.iteration, **metrics})
        return metrics

    def _is_save_step(self) -> bool:
        interval = self.config.checkpoint.save_interval
        return interval is not None and self.state.step % interval == 0

    def _save(self, iteration: Iteration | None) -> None:
        """Saves unless this very step is saved already. Inside an iteration, with its rollouts and its frozen π_t."""
        if self.state.step == self.saved_step:
            return
        groups, samples = (iteration.groups, iteration.samples) if iteration else ([], [])
        state = replace(self.state, has_rollouts=iteration is not None)
        self.checkpointer.save(self.state.step, lambda folder: state.write(folder, groups, samples))
        self.saved_step = self.state.step

    def _stop_if_preempted(self, iteration: Iteration | None) -> None:
        if self.preemption is not None and self.preemption.requested():
            self._save(iteration)
            self.checkpointer.finalize()
            raise Preempted(self.state.step)

    def _resume(self) -> Iteration | None:
        """Takes up a checkpoint; inside an iteration, with its rollouts and its frozen π_t."""
        if self.resumed_from is None:
            return None
        self.saved_step = self.state.step
        self.checkpointer.load(self.resumed_from)
        if self.prompts is not None:
            self.prompts.load_state_dict({"position": self.state.prompt_position})
        self.weight_sync.push(self.policy.export_weights(), self.state.step)
        if not self.state.has_rollouts:
            return None
        groups, old_log_probs = self.state.read_groups(self.resumed_from)
        iteration = self._build(groups)
        set_old_log_probs(iteration.samples, old_log_probs, self.config.objective)
        return iteration
