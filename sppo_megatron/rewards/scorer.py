"""What a scorer is, and scoring spread over ranks: each group is scored on one, and every rank gets every score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch.distributed as dist

from sppo_megatron.cluster.consensus import of_all_ranks
from sppo_megatron.cluster.interrupt import Interrupted, interruptible
from sppo_megatron.types import Group


class Outcome(NamedTuple):
    """What became of scoring one response; reward is None if it failed, and error says why."""

    reward: float | None
    correct: bool | None = None
    error: str | None = None


class ScoringError(RuntimeError):
    """There are too few scores to train on. what: "answered none of the questions", why: the first failure."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"the reward {what}: {why}")
        self.what, self.why = what, why


class Scorer(Protocol):
    """needs_answer: whether every prompt must have an answer.

    gives_preferences: whether it compares responses; else it scores each by itself.
    metrics: what the last call counted (totals: calls, tokens, seconds), by the names it is logged under. A scorer of
    preferences counts <its kind>_questions and <its kind>_failed.
    """

    metrics: dict[str, float]

    @property
    def needs_answer(self) -> bool: ...

    @property
    def gives_preferences(self) -> bool: ...

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """New groups, in order, that have this scorer's rewards and nothing of an earlier scoring.

        Raises ScoringError if it can't be asked at all.
        """
        ...

    def close(self) -> None: ...


def with_rewards(group: Group, outcomes: Sequence[Outcome], default: float = 0.0) -> Group:
    """The group with a reward for each response, `default` for one whose scoring failed, and without a preference.

    An old preference must not stand next to new rewards: they would be two answers to one question.
    """
    responses = [
        replace(response, reward=default if reward is None else reward, correct=correct, error=error)
        for response, (reward, correct, error) in zip(group.responses, outcomes, strict=True)
    ]
    return Group(group.prompt, responses)


def score_over_ranks(
    scorer: Scorer, groups: Sequence[Group], max_failed_share: float = 1.0, group: dist.ProcessGroup | None = None
) -> list[Group]:
    """New groups with their scores, of groups that every rank of `group` holds (the world if None).

    Without a process group this rank is the only one. scorer.metrics are then the totals over the ranks.
    Raises, the same on every rank, ScoringError if more than max_failed_share of the questions, or of the responses of
    a scorer that asks none, failed, and Interrupted if a rank was told to stop meanwhile.
    """
    rank, size = (dist.get_rank(group), dist.get_world_size(group)) if dist.is_initialized() else (0, 1)
    failure: ScoringError | None = None
    scored: list[Group] = []
    interrupted = False
    try:
        with interruptible():
            scored = scorer.score(groups[rank::size])
    except ScoringError as error:
        failure = error
    except Interrupted:
        interrupted = True
    scores = [(g.preference, [Outcome(r.reward, r.correct, r.error) for r in g.responses]) for g in scored]
    why = None if failure is None else (failure.what, failure.why)
    shares = of_all_ranks((scores, scorer.metrics, why, interrupted), group)
    if any(share[-1] for share in shares):
        raise Interrupted
    for _, _, failed, _ in shares:
        if failed is not None:
            raise ScoringError(*failed)
    scorer.metrics = total([metrics for _, metrics, *_ in shares])
    found = []
    for place, unscored in enumerate(groups):
        preference, outcomes = shares[place % size][0][place // size]
        found.append(replace(with_rewards(unscored, outcomes), preference=preference))
    check_failures(found, scorer.metrics, max_failed_share)
    return found


def total(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """The sum under each name; a name that is missing somewhere counts 0 there."""
    return {
        name: sum(part.get(name, 0.0) for part in parts) for name in dict.fromkeys(n for part in parts for n in part)
    }


def with_means(metrics: dict[str, float]) -> dict[str, float]:
    """Totals over all ranks, with named_reward_mean/NAME in the place of reward_sum/NAME and reward_count/NAME."""
    found = {}
    for name, value in metrics.items():
        kind, _, of = name.partition("/")
        if kind == "reward_sum":
            found[f"named_reward_mean/{of}"] = value / max(1.0, metrics[f"reward_count/{of}"])
        elif kind != "reward_count":
            found[name] = value
    return found


def check_failures(groups: Sequence[Group], metrics: dict[str, float], max_failed_share: float) -> None:
    """Of scored groups, and the scorer's metrics of all of them. Raises ScoringError as `score_over_ranks`."""
    errors = [response.error for group in groups for response in group.responses if response.error is not None]
    alone = [response for group in groups if group.preference is None for response in group.responses]
    questions = int(sum(count for name, count in metrics.items() if name.endswith("_questions")))
    failed = int(sum(count for name, count in metrics.items() if name.endswith("_failed")))
    failed += sum(response.error is not None for response in alone)
    asked = questions + len(alone)
    if failed <= max_failed_share * asked:
        return
    verb = "answered" if questions else "scored"
    what = " and ".join(["questions"] * (questions > 0) + ["responses"] * (len(alone) > 0))
    told = f"{verb} none of the {what}" if failed == asked else f"failed on {failed} of {asked} {what}"
    raise ScoringError(told, errors[0])
