"""One iteration: rollouts with their targets, π_t frozen over them, cut into mini-batches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sppo_megatron.batch.gate import MismatchGate
from sppo_megatron.batch.micro_batches import Sample, Unit
from sppo_megatron.batch.pairs import build_units
from sppo_megatron.batch.samples import build_samples, minibatches, set_old_log_probs
from sppo_megatron.batch.targets import Targets, build_targets
from sppo_megatron.config import Config
from sppo_megatron.objective import degenerate_group_sums, finalize_diagnostics
from sppo_megatron.types import Group

logger = logging.getLogger(__name__)


@dataclass
class Iteration:
    """index: from 0. last_line: what the last step logged.

    samples: the responses of all groups, in order; for SPIN, the human responses after them.
    """

    index: int
    groups: list[Group]
    targets: Targets
    samples: list[Sample]
    minibatches: list[list[Unit]] = field(default_factory=list)
    last_line: dict[str, float] = field(default_factory=dict)


def start_iteration(groups: list[Group], index: int, config: Config) -> Iteration:
    """Scored groups with their regression targets."""
    targets = build_targets(groups, config.objective)
    samples = build_samples(groups, targets, config.objective, config.rollout.max_response_length)
    return Iteration(index, groups, targets, samples)


def freeze(iteration: Iteration, old_log_probs: Sequence[np.ndarray], config: Config) -> None:
    """log π_t of every sample, before any update: float32 nats, one array for each."""
    set_old_log_probs(iteration.samples, old_log_probs, config.objective)
    responses = [response for group in iteration.groups for response in group.responses]
    for response, log_probs in zip(responses, old_log_probs[: len(responses)], strict=True):
        response.old_log_probs = log_probs


def cut_minibatches(iteration: Iteration, gate: MismatchGate, config: Config, version: int) -> dict[str, float]:
    """Asks the gate and cuts what passes it into mini-batches; returns the metrics of both.

    version: of the policy that was frozen.
    A pure function of frozen rollouts, so a resumed run has the same ones. Raises TrainingError where the gate stops.
    """
    dropped, metrics = gate.check(iteration.samples, iteration.index, version)
    units = build_units(iteration.samples, iteration.groups, iteration.targets, config.objective)
    units = [unit for unit in units if not any(sample.index in dropped for sample in unit)]
    if not units:
        logger.warning("iteration %d has nothing to train on", iteration.index)
    iteration.minibatches = minibatches(
        units,
        config.train.minibatch_size,
        config.train.epochs_per_iteration,
        shuffle=config.train.shuffle,
        seed=config.train.seed,
        iteration=iteration.index,
    )
    targets = iteration.targets
    degenerate = finalize_diagnostics(degenerate_group_sums(targets.values, targets.group_ids), {})
    responses = [response for group in iteration.groups for response in group.responses]
    if config.objective.pairwise is not None:
        metrics |= _means_over_responses(targets)
    return metrics | {
        "degenerate_group_share": degenerate["degenerate_group_share"],
        "reward_errors": float(sum(response.error is not None for response in responses)),
    }


def _means_over_responses(targets: Targets) -> dict[str, float]:
    """What a step's pairs can't tell: they are the best and the worst responses, or not sampled at all."""
    means = {"reward_mean": float(targets.rewards.double().mean())}
    if targets.win_rates is not None:
        means["win_rate_mean"] = float(targets.win_rates.double().mean())
    return means
