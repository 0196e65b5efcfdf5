"""Held-out prompts, answered by the current policy, scored, and compared with the answers of earlier policies."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sppo_megatron.data.rollout_file import read_groups, write_groups
from sppo_megatron.errors import ConfigError
from sppo_megatron.objective import wilson_interval
from sppo_megatron.rewards.scorer import Scorer, score_over_ranks
from sppo_megatron.rollout.collector import Collector
from sppo_megatron.train.evaluation.comparison import have_same_counts, rates_against, with_win_rates
from sppo_megatron.train.evaluation.measures import Right
from sppo_megatron.train.evaluation.metrics import evaluation_metrics, findings_by_set
from sppo_megatron.types import Group, Prompt

logger = logging.getLogger(__name__)

_FILES = {"initial": "evaluation_initial.jsonl", "previous": "evaluation_previous.jsonl"}
_COMPARISONS = {f"eval_win_rate_{name}{end}" for name in _FILES for end in ("", "_low", "_high")}


@dataclass
class Evaluator:
    """The collector samples as configured for evaluation; its seeds do not depend on when it is asked.

    folder: where the answers of each evaluation are written, None on ranks that don't. initial, previous: the scored
    answers of π_0 and of the evaluation before, None if they aren't known. right: which answers solve a prompt.
    """

    collector: Collector
    scorer: Scorer
    prompts: list[Prompt]
    folder: Path | None = None
    initial: list[Group] | None = None
    previous: list[Group] | None = None
    right: Right = field(default_factory=Right)

    def evaluate(self, iteration: int) -> dict[str, float]:
        """Metrics of the policy after so many iterations, the same on every rank. Collective.

        eval_reward_mean; eval_reward_errors, the answers that couldn't be scored or compared, of which a comparison
        counts as a tie; eval_exact_match if the reward defines a right answer; eval_pass_at_K and eval_maj_at_K if
        there are several answers to a prompt and the reward is no preference; response statistics, all of them also
        of each source that has a name (*/NAME); and for `initial` and `previous` eval_win_rate_*. With the ends of
        95% intervals over prompts (*_low, *_high). If the reward is a preference, eval_reward_mean is the win rate
        against the initial policy.
        """
        groups = self.collector.collect(self.prompts, 0)
        if not self.scorer.gives_preferences:
            groups = score_over_ranks(self.scorer, groups)
        self._leave_out_unlike(groups)
        rates, errors = self._win_rates(groups)
        if self.scorer.gives_preferences:
            groups = with_win_rates(groups, rates.get("initial"), errors)
        if self.folder is not None:
            write_groups(self.folder / f"iteration_{iteration:06d}.jsonl", groups)
        self.previous = groups
        right = None if self.scorer.gives_preferences else self.right
        metrics = evaluation_metrics(findings_by_set(groups, right))
        for name, rate in rates.items():
            metrics |= _with_interval(f"eval_win_rate_{name}", rate)
        if iteration == 0:
            self.initial = groups
            metrics["eval_win_rate_initial"] = 0.5  # against itself, and nothing is uncertain about it
        return metrics

    def write(self, folder: Path) -> None:
        """Adds the answers that later policies are compared with to a checkpoint."""
        for name, file in _FILES.items():
            if (groups := getattr(self, name)) is not None:
                write_groups(folder / file, groups)

    def read(self, folder: Path) -> None:
        """Takes them up again. Those of other prompts are left out, with a warning."""
        for name, file in _FILES.items():
            groups = read_groups(folder / file) if (folder / file).exists() else []
            fits = [_ids(group.prompt) for group in groups] == [_ids(prompt) for prompt in self.prompts]
            if not fits:
                logger.warning("%s has no answers to these evaluation prompts: no win rate against them", folder / file)
            setattr(self, name, groups if fits else None)

    def _leave_out_unlike(self, groups: Sequence[Group]) -> None:
        """Answer stands against answer: a resume with another eval.num_samples_per_prompt has nothing to compare."""
        for name in _FILES:
            opponents = getattr(self, name)
            if opponents is not None and not have_same_counts(groups, opponents):
                logger.warning("eval.num_samples_per_prompt changed: no win rate against the %s answers", name)
                setattr(self, name, None)

    def _win_rates(self, groups: list[Group]) -> tuple[dict[str, np.ndarray], list[str | None]]:
        """P(current answer beats the other one) [prompts, samples] against each policy that is known.

        Then, for each answer in order, why a comparison of it failed, None if none did.
        """
        rates: dict[str, np.ndarray] = {}
        errors: list[str | None] = [None for group in groups for _ in group.responses]
        if self.initial is not None:
            rates["initial"], errors = rates_against(self.scorer, groups, self.initial)
        if self.previous is self.initial is not None:
            rates["previous"] = rates["initial"]
        elif self.previous is not None:
            rates["previous"], others = rates_against(self.scorer, groups, self.previous)
            errors = [first or second for first, second in zip(errors, others, strict=True)]
        return rates, errors


def judged_by(metrics: dict[str, float], keep_best: str | None) -> float | None:
    """The value of the metric that says which policy is the best: higher is better.

    None if none is kept, or there is nothing to compare with: no previous evaluation, or none of the same prompts.
    auto: eval_reward_mean, which is the win rate against the initial policy if the reward is a preference.
    Raises ConfigError if the evaluation has no metric of that name.
    """
    if keep_best is None:
        return None
    name = "eval_reward_mean" if keep_best == "auto" else keep_best
    known = metrics.keys() | _COMPARISONS
    if name not in known:
        raise ConfigError(
            f"checkpoint.keep_best={name} is no metric of the evaluation: choose auto, null or one of "
            f"{', '.join(sorted(known))}"
        )
    return metrics.get(name)


def _with_interval(name: str, rates: np.ndarray) -> dict[str, float]:
    """Answers to one prompt aren't independent of each other: the interval counts prompts."""
    mean = float(rates.mean())
    low, high = wilson_interval(mean, len(rates))
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def _ids(prompt: Prompt) -> list[int]:
    return prompt.token_ids.tolist()
