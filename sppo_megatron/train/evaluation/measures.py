"""From scored groups to estimates: the mean reward, the share of right answers, pass@k and maj@k.

Every prompt has the same number of answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sppo_megatron.objective import clustered_interval, clustered_share_interval
from sppo_megatron.rewards.same_answer import count_votes
from sppo_megatron.train.evaluation.estimators import maj_at_k, pass_at_k
from sppo_megatron.types import Group, Response


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts, each of which counts the same, and the ends of its 95% interval.

    low and high are None if a single prompt leaves them open.
    """

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Right:
    """Which answers are right: those whose reward is at least `bar`; if that is None, those that the reward itself
    calls right, or whose reward is at least 1 if it says nothing. One whose scoring failed isn't."""

    bar: float | None = None

    def __call__(self, response: Response) -> bool:
        if response.error is not None or response.reward is None:
            return False
        if self.bar is None and response.correct is not None:
            return response.correct
        return response.reward >= (1.0 if self.bar is None else self.bar)


def sample_sizes(n: int) -> list[int]:
    """The k of pass@k and maj@k of n answers: powers of two, and n."""
    return sorted({n, *(1 << i for i in range(n.bit_length()) if 1 << i <= n)})


def mean_reward(groups: Sequence[Group]) -> Estimate:
    """Of responses that all have a reward."""
    rewards = np.array([[float(response.reward or 0.0) for response in group.responses] for group in groups])
    ends = clustered_interval(rewards.mean(axis=1).tolist()) if len(groups) > 1 else (None, None)
    return Estimate(float(rewards.mean()), *ends)


def share(groups: Sequence[Group], holds: Callable[[Response], bool | None]) -> Estimate:
    """Of the responses for which `holds` is true."""
    return _share([_mean([float(bool(holds(r))) for r in group.responses]) for group in groups], groups)


def share_of_rates(rates: Sequence[np.ndarray]) -> Estimate:
    """Of values in [0, 1], such as win rates, [samples] of each prompt."""
    return Estimate(
        float(np.mean([rate.mean() for rate in rates])),
        *clustered_share_interval([float(rate.mean()) for rate in rates], sum(len(rate) for rate in rates)),
    )


def measures_of_samples(groups: Sequence[Group], right: Callable[[Response], bool]) -> Iterator[tuple[str, Estimate]]:
    """pass_at_K and maj_at_K for every K of `sample_sizes`, if prompts have several answers.

    No maj_at_1, which is pass_at_1, and none at all if responses have no texts.
    """
    n = len(groups[0].responses)
    if n == 1:
        return
    verdicts = [[right(response) for response in group.responses] for group in groups]
    for k in sample_sizes(n):
        yield f"pass_at_{k}", _share([float(pass_at_k(n, sum(verdict), k)) for verdict in verdicts], groups)
    votes = [_votes(group, verdict) for group, verdict in zip(groups, verdicts, strict=True)]
    if all(vote is not None for vote in votes):
        for k in sample_sizes(n)[1:]:
            yield f"maj_at_{k}", _share([float(maj_at_k(*vote, k)) for vote in votes if vote is not None], groups)


def _votes(group: Group, verdict: Sequence[bool]) -> tuple[list[tuple[int, int]], int] | None:
    """The classes and the silent ones, as `maj_at_k` takes them."""
    texts = [response.text for response in group.responses if response.text is not None]
    if len(texts) != len(verdict):
        return None
    votes = count_votes(texts, group.prompt.answer)
    return [(len(places), sum(verdict[place] for place in places)) for places in votes.classes], len(votes.silent)


def _share(values: Sequence[float], groups: Sequence[Group]) -> Estimate:
    answers = sum(len(group.responses) for group in groups)
    return Estimate(_mean(values), *clustered_share_interval(values, answers))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
