"""From scored groups with their frozen log-probs to what the policy trains on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from sppo_megatron.batch.columns import importance_column, log_ratio_columns, mean_over_sampled, response_columns
from sppo_megatron.batch.gate import UNKNOWN, Rollouts, check_mismatch
from sppo_megatron.batch.sequences import Sequences
from sppo_megatron.batch.targets import Targets, build_targets
from sppo_megatron.batch.training_batch import NOTHING, TrainingBatch, build_units, cut_minibatches
from sppo_megatron.config import MismatchConfig, TrainConfig
from sppo_megatron.objective import degenerate_group_sums, sequence_weights
from sppo_megatron.objective.base import Objective, Units
from sppo_megatron.types import Group

logger = logging.getLogger(__name__)


def build_batch(
    groups: Sequence[Group],
    sequences: Sequences,
    old_log_probs: np.ndarray,
    objective: Objective,
    *,
    train: TrainConfig,
    mismatch: MismatchConfig,
    iteration: int,
    version: int | None = None,
    ref_log_probs: np.ndarray | None = None,
) -> TrainingBatch:
    """The whole iteration as columns and mini-batches; a pure function, so a resumed run has the same ones.

    groups: scored. sequences: of `sequences_of(groups)`. old_log_probs, ref_log_probs: float32 [T] nats, of π_t and
    π_ref. iteration: from 0. version: of the weights that gave old_log_probs.
    Raises ValueError as `build_targets`, or if importance weights are wanted and a response has no rollout_log_probs;
    TrainingError if the gate stops.
    """
    targets = build_targets(groups, objective)
    weights = sequence_weights(targets.lengths, objective.sequence_weight, max_length=objective.max_length)
    degenerate = degenerate_group_sums(targets.values, targets.group_ids) if groups else {}
    rollouts = rollouts_of(groups, sequences)
    verdict = check_mismatch(sequences, old_log_probs, rollouts, mismatch, iteration=iteration, version=version)
    units = build_units(objective.units, groups, targets)
    columns = response_columns(targets, groups, units, sequences, objective, weights)
    columns |= log_ratio_columns(sequences, old_log_probs, rollouts, ref_log_probs)
    importance = importance_column(targets, sequences, old_log_probs, rollouts, objective, verdict.to_weight)
    columns |= {"importance_weight": importance, "weight": columns["weight"] * importance}
    metrics = verdict.metrics | _token_age(sequences, rollouts, version)
    metrics |= _metrics(targets, groups, objective, degenerate)
    if ref_log_probs is not None:
        metrics |= mean_over_sampled("kl_ref", columns["ref_log_ratio"], targets)
    out = (units != NOTHING) & verdict.dropped[units]
    units = units[~out.any(axis=1)]
    if not len(units):
        logger.warning("iteration %d has nothing to train on", iteration)
    return TrainingBatch(
        sequences,
        old_log_probs,
        {name: column.astype(np.float32) for name, column in columns.items()},
        rollouts.log_probs,
        rollouts.has_log_probs,
        ref_log_probs,
        cut_minibatches(
            units,
            train.minibatch_size,
            train.epochs_per_iteration,
            shuffle=train.shuffle,
            seed=train.seed,
            iteration=iteration,
            prompt_of=sequences.prompt_of if train.shared_prompts else None,
        ),
        metrics,
    )


def rollouts_of(groups: Sequence[Group], sequences: Sequences) -> Rollouts:
    """What the engine said of the groups' responses; nothing of human ones."""
    responses = [response for group in groups for response in group.responses]
    has_log_probs = np.zeros(len(sequences), np.bool_)
    versions = np.full(len(sequences), UNKNOWN, np.int64)
    log_probs = np.zeros(sequences.total, np.float32)
    for place, response in enumerate(responses):
        if response.policy_version is not None:
            versions[place] = response.policy_version
        if response.rollout_log_probs is not None:
            has_log_probs[place] = True
            log_probs[sequences.offsets[place] : sequences.offsets[place + 1]] = response.rollout_log_probs
    return Rollouts(log_probs, has_log_probs, versions)


def with_old_log_probs(groups: Sequence[Group], sequences: Sequences, old_log_probs: np.ndarray) -> list[Group]:
    """New groups whose responses have their log π_t, for the rollout file."""
    of_response = iter(sequences.split(old_log_probs))
    return [
        replace(group, responses=[replace(response, old_log_probs=next(of_response)) for response in group.responses])
        for group in groups
    ]


def _metrics(
    targets: Targets, groups: Sequence[Group], objective: Objective, degenerate: Mapping[str, Tensor]
) -> dict[str, float]:
    """Of all groups, whatever of them is trained on; {} of none."""
    if not groups:
        return {}
    metrics = {
        "degenerate_group_share": float(degenerate["degenerate_groups"] / degenerate["groups"]),
        "reward_errors": float(sum(response.error is not None for group in groups for response in group.responses)),
    }
    metrics |= _means_of_sources(targets, groups)
    if objective.units in (Units.BEST_WORST, Units.HUMAN_VS_SAMPLE):
        # What a step's pairs can't tell: they are the best and the worst responses, or not sampled at all.
        metrics["reward_mean"] = float(targets.rewards.mean())
        if targets.win_rates is not None:
            metrics["win_rate_mean"] = float(targets.win_rates.mean())
    return metrics


def _token_age(sequences: Sequences, rollouts: Rollouts, version: int | None) -> dict[str, float]:
    """Optimizer steps between the weights that sampled a token and those of `version`, which it is trained from.

    Over the tokens that count. {} if no version is known, or if one is later: then it counts the steps of another run.
    """
    known = rollouts.versions != UNKNOWN
    if version is None or not known.any() or rollouts.versions.max() > version:
        return {}
    ages, tokens = version - rollouts.versions[known], sequences.lengths[known]
    return {"token_age_mean": float((ages * tokens).sum() / max(tokens.sum(), 1)), "token_age_max": float(ages.max())}


def _means_of_sources(targets: Targets, groups: Sequence[Group]) -> dict[str, float]:
    """reward_mean/NAME over the responses of each data source that has a name."""
    names = [group.prompt.source for group in groups for _ in group.responses]
    rewards = targets.rewards.numpy()
    return {
        f"reward_mean/{name}": float(rewards[[other == name for other in names]].mean())
        for name in sorted({name for name in names if name is not None})
    }
