"""From scored groups to what is trained: samples with targets and weights, and mini-batches of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sppo_megatron.batch.micro_batches import Sample, Unit
from sppo_megatron.batch.targets import Targets
from sppo_megatron.config import ObjectiveConfig
from sppo_megatron.objective import mean_token_weight, rollout_importance_weights, sequence_weights
from sppo_megatron.types import Group


def build_samples(
    groups: Sequence[Group], targets: Targets, objective: ObjectiveConfig, max_response_length: int
) -> list[Sample]:
    """One sample per response, in the groups' order; for SPIN, the prompts' human responses after all of them.

    max_response_length: tokens, for sequence_weight=max_length. Raises ValueError naming the group whose prompt lacks a
    human response that is needed.
    """
    mode = objective.sequence_weight or objective.loss_agg_mode
    weights = sequence_weights(targets.lengths, mode, max_length=max_response_length)
    win_rates = targets.win_rates if targets.win_rates is not None else torch.full_like(targets.rewards, 0.5)
    samples: list[Sample] = []
    for group in groups:
        for response in group.responses:
            index = len(samples)
            samples.append(
                Sample(
                    index=index,
                    prompt_token_ids=group.prompt.token_ids,
                    response_token_ids=response.token_ids,
                    rollout_log_probs=response.rollout_log_probs,
                    target=float(targets.target[index]),
                    weight=float(weights[index]),
                    reward=float(targets.rewards[index]),
                    win_rate=float(win_rates[index]),
                    truncated=response.finish_reason == "length",
                    policy_version=response.policy_version,
                )
            )
    return samples + _human_samples(groups, first=len(samples)) if objective.pairwise == "spin" else samples


def _human_samples(groups: Sequence[Group], first: int) -> list[Sample]:
    """One for each group. first: the index of the first one."""
    samples = []
    for place, group in enumerate(groups):
        ids = group.prompt.human_token_ids
        if ids is None:
            raise ValueError(
                f"group {place} (prompt {group.prompt.index}) has no human response, which objective.pairwise=spin "
                "trains towards: set data.response_key, or give human_token_ids in the rollout file"
            )
        samples.append(Sample(first + place, group.prompt.token_ids, ids, is_human=True))
    return samples


def set_old_log_probs(
    samples: Sequence[Sample], old_log_probs: Sequence[np.ndarray], objective: ObjectiveConfig
) -> None:
    """Freezes log π_t in the samples and, where configured, multiplies their weights by π_old/π_rollout, truncated.

    Raises ValueError where importance weights are wanted and a response has no rollout_log_probs.
    """
    for sample, log_probs in zip(samples, old_log_probs, strict=True):
        sample.old_log_probs = log_probs
        if objective.importance_weight is not None and not sample.is_human:
            weight_by_importance(sample, objective.importance_weight, objective.importance_cap)


def weight_by_importance(sample: Sample, level: str, cap: float) -> None:
    """Multiplies the sample's weight by its truncated importance weight. level: sequence | token.

    Raises ValueError where the response has no rollout_log_probs.
    """
    if sample.rollout_log_probs is None or sample.old_log_probs is None:
        raise ValueError(
            f"response {sample.index} has no rollout_log_probs, which "
            f"objective.importance_weight={level} needs: set it to null"
        )
    old, rollout = torch.from_numpy(sample.old_log_probs)[None], torch.from_numpy(sample.rollout_log_probs)[None]
    mask = torch.ones_like(old, dtype=torch.bool)
    weights = rollout_importance_weights(old, rollout, mask, level=level, cap=cap)
    if level == "token":
        weights = mean_token_weight(weights, mask)
    sample.importance_weight = float(weights)
    sample.weight *= sample.importance_weight


def set_ref_log_ratios(samples: Sequence[Sample], ref_log_probs: Sequence[np.ndarray]) -> dict[str, float]:
    """Sets log π_t − log π_ref of every sample, whose old_log_probs are there.

    ref_log_probs: float32 [response_length] nats of each. Returns kl_ref: the mean over sampled responses in nats, an
    estimate of KL(π_t‖π_ref).
    """
    for sample, log_probs in zip(samples, ref_log_probs, strict=True):
        assert sample.old_log_probs is not None
        sample.ref_log_ratio = float(np.sum(sample.old_log_probs.astype(np.float64) - log_probs.astype(np.float64)))
    ratios = [sample.ref_log_ratio for sample in samples if sample.is_valid and not sample.is_human]
    return {"kl_ref": float(np.mean(ratios))} if ratios else {}


def minibatches(
    units: Sequence[Unit], minibatch_size: int | None, epochs: int, *, shuffle: bool, seed: int, iteration: int
) -> list[list[Unit]]:
    """The mini-batches of one iteration, in order. minibatch_size counts sequences; an epoch's last may be smaller.

    A pure function of its arguments, so a resumed run has the same ones.
    """
    if not units:
        return []
    size = max(1, (minibatch_size or len(units) * len(units[0])) // len(units[0]))
    batches: list[list[Unit]] = []
    for epoch in range(epochs):
        order = np.arange(len(units))
        if shuffle:
            np.random.default_rng([seed, iteration, epoch]).shuffle(order)
        batches += [[units[i] for i in order[start : start + size]] for start in range(0, len(units), size)]
    return batches


def steps_per_iteration(num_sequences: int, minibatch_size: int | None, epochs: int) -> int:
    """Optimizer steps of an iteration with this many responses (or sequences of pairs)."""
    size = minibatch_size or num_sequences
    return epochs * -(-num_sequences // size)
