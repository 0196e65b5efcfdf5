"""What an objective is to the trainer: what it needs, what its units are, its targets and its loss.

One file defines an objective and one line of `registry` names it. It is built from plain values and sees plain tensors.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from sppo_megatron.objective.baseline import group_baseline
from sppo_megatron.objective.checks import check_choice
from sppo_megatron.objective.diagnostics import regression_diagnostics, token_diagnostics
from sppo_megatron.objective.reduction import LossSums
from sppo_megatron.objective.regression import regression_target, resolve_eta


class Units(enum.Enum):
    """The sequences that a loss needs together; they share a mini-batch and a micro-batch."""

    SINGLE = "each response by itself"
    BEST_WORST = "the best and the worst response of a group"
    HUMAN_VS_SAMPLE = "a prompt's human response and a sampled one, for each sampled one"
    GROUP = "all responses of a group"

    def sequences_of_group(self, num_responses: int) -> int:
        """How many sequences a group of so many responses gives to an epoch, at most."""
        return {Units.BEST_WORST: 2, Units.HUMAN_VS_SAMPLE: 2 * num_responses}.get(self, num_responses)


START = ""  # among an objective's references: the policy that the run started from


@dataclass(frozen=True)
class Needs:
    """What must be there before the first step, besides log π_t of every response."""

    win_rates: bool = False
    reference: bool = False  # log π_ref of every response, of the policy that the run started from
    rollout_log_probs: bool = False


class LossBatch(Protocol):
    """What a loss may read of a micro-batch: n tokens that count, S sequences, each complete over all ranks.

    columns: float32 [S] each: target, weight, reward, win_rate, preference, importance_weight, ref_log_ratio and what
    `Objective.columns` adds. lengths: float32 [S], tokens, 0 for a response that has none. units: int64 [S].
    sequence_ids: int64 [n] in [0, S). old_log_probs, ref_log_probs, rollout_log_probs: float32 [n]
    nats, None if they aren't known.
    """

    @property
    def columns(self) -> dict[str, Tensor]: ...
    @property
    def lengths(self) -> Tensor: ...
    @property
    def units(self) -> Tensor: ...
    @property
    def sequence_ids(self) -> Tensor: ...
    @property
    def old_log_probs(self) -> Tensor: ...
    @property
    def ref_log_probs(self) -> Tensor | None: ...
    @property
    def rollout_log_probs(self) -> Tensor | None: ...


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The values that all objectives share, named and described as the configuration's `objective` group.

    eta: η = 1/τ. max_length: the longest response in tokens, for sequence_weight `max_length`.
    """

    # A token-level loss gets the log-ratio of every token; any other gets the complete sums of the sequences.
    is_token_level: ClassVar[bool] = False
    is_regression: ClassVar[bool] = False
    units: ClassVar[Units] = Units.SINGLE
    # What finalize_diagnostics makes of LossSums.metrics: metric -> (numerator, denominator)
    means: ClassVar[Mapping[str, tuple[str, str]]] = {}

    eta: float = 1.0
    reward: str = "reward"
    win_rate_estimator: str = "include_self"
    baseline: str = "constant"
    target_clip: float | None = None
    length_reward_weight: float = 0.0
    sequence_weight: str = "none"
    max_length: int | None = None
    importance_weight: str | None = None
    importance_cap: float = 2.0

    def __post_init__(self) -> None:
        check_choice("objective.reward", self.reward, ("reward", "win_rate"))

    @classmethod
    def from_keys(cls, keys: Mapping[str, Any]) -> Self:
        """keys: every key of the `objective` group and max_length. Raises ValueError on an η that isn't one."""
        values = dict(keys)
        values["eta"] = resolve_eta(keys.get("eta", 1.0), keys.get("tau"))
        values["sequence_weight"] = keys.get("sequence_weight") or keys.get("loss_agg_mode", "none")
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})

    @classmethod
    def keys_read(cls) -> set[str]:
        """Keys of the configuration that it reads."""
        return {f.name for f in fields(cls)}

    @classmethod
    def check(cls, config: Any, generates: bool) -> Iterator[str]:
        """What is wrong with its keys in a whole configuration, one sentence each.

        generates: whether responses are sampled; False if stored ones are read.
        """
        yield from ()

    @property
    def needs(self) -> Needs:
        return self.shared_needs()

    def shared_needs(self, *, reference: bool = False) -> Needs:
        """What the shared keys ask for, and what is given."""
        return Needs(
            win_rates=self.reward == "win_rate",
            reference=reference,
            rollout_log_probs=self.importance_weight is not None,
        )

    @property
    def references(self) -> Mapping[str, float]:
        """What π_ref is, if it is needed: START or folders in Hugging Face format, and the weight of each log π.

        The weights add up to 1.
        """
        return {START: 1.0}

    def columns(self, values: Tensor, group_ids: Tensor) -> dict[str, Tensor]:
        """Float64 [B] columns of all sampled responses; `target` (δ, nats) must be one of them.

        values: float64 [B], rewards or win rates, with the length reward. group_ids: int64 [B]. Groups are whole.
        """
        baseline = group_baseline(values, group_ids, self.baseline, tau=1.0 / self.eta)
        return {"target": regression_target(values, baseline, self.eta, clip=self.target_clip)}

    def count(self, lengths: np.ndarray) -> float:
        """The denominator of the mean over a whole mini-batch: by default its units without an empty response.

        lengths: int64 [U, W], tokens of each sequence of each unit, −1 in a unit that has fewer than W.
        """
        return float((lengths != 0).all(axis=1).sum())

    def regression(self, batch: LossBatch) -> tuple[Tensor, Tensor]:
        """(δ, coefficient), [S] each, if the loss is Σ coefficient (s − δ)² and `is_regression` says so.

        The fused head then computes it. Coefficients are 0, and δ finite, for responses that must not count.
        """
        raise TypeError(f"{type(self).__name__} is no regression")

    def loss(self, log_ratio: Tensor, batch: LossBatch) -> LossSums:
        """The sum over valid units, to be divided by `count`.

        log_ratio: s [S] of complete sequences, nats; of a token-level loss [n], log π_θ − log π_t of each token of this
        context-parallel rank, whose sums are added over the ranks.
        """
        raise TypeError(f"{type(self).__name__} has no loss")

    def diagnostics(
        self, log_probs: Tensor, log_ratio: Tensor, loss: LossSums, batch: LossBatch, with_rollout_log_probs: bool
    ) -> dict[str, dict[str, Tensor]]:
        """What is logged of a micro-batch: sums of complete sequences, sums of this rank's tokens, and maxima.

        log_probs: [n] nats. log_ratio: s [S], complete. with_rollout_log_probs: every response of the mini-batch has
        the engine's, so that an empty micro-batch has the same keys.
        """
        rollout, columns = batch.rollout_log_probs, batch.columns
        if with_rollout_log_probs and rollout is None:
            rollout = torch.zeros_like(batch.old_log_probs)
        sequence, sequence_maxima = regression_diagnostics(
            log_ratio,
            columns["target"],
            batch.lengths,
            tau=1.0 / self.eta,
            rewards=columns["reward"],
            win_rate=columns["win_rate"],
            truncated=columns["truncated"],
            importance_weight=columns["importance_weight"],
            rollout_log_ratio=columns["rollout_log_ratio"] if with_rollout_log_probs else None,
        )
        token, token_maxima = token_diagnostics(
            log_probs,
            batch.old_log_probs,
            torch.ones_like(log_probs, dtype=torch.bool),
            rollout_log_probs=rollout if with_rollout_log_probs else None,
        )
        # Complete sequences are the same on every context-parallel rank; tokens are each rank's own.
        own = token if self.is_token_level else sequence
        own |= {"loss_sum": loss.loss_sum.detach(), **loss.metrics}
        return {"sequence": sequence, "token": token, "maxima": sequence_maxima | token_maxima}
