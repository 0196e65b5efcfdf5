"""Scoring spread over ranks: each group is scored on one of them, and every rank gets every score."""

from __future__ import annotations

from typing import Protocol

import torch.distributed as dist

from sppo_megatron.types import Group


class Scorer(Protocol):
    """needs_answer: whether every prompt must have an answer.

    gives_preferences: whether it compares responses, and sets a group's preference; else it scores each by itself.
    metrics: what the last call counted (totals: calls, tokens, seconds), by the names it is logged under.
    """

    metrics: dict[str, float]

    @property
    def needs_answer(self) -> bool: ...

    @property
    def gives_preferences(self) -> bool: ...

    def score(self, groups: list[Group]) -> list[Group]: ...

    def close(self) -> None: ...


def score_over_ranks(scorer: Scorer, groups: list[Group], group: dist.ProcessGroup | None = None) -> list[Group]:
    """Scores groups that every rank of `group` (the world where None) holds, in place, each on one rank.

    scorer.metrics are then the totals over the ranks.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    scorer.score(groups[rank::size])
    mine = [(g.preference, [(r.reward, r.correct, r.error) for r in g.responses]) for g in groups[rank::size]]
    shares: list = [None] * size
    dist.all_gather_object(shares, (mine, scorer.metrics), group=group)
    for place, scored in enumerate(groups):
        scored.preference, responses = shares[place % size][0][place // size]
        for response, (reward, correct, error) in zip(scored.responses, responses, strict=True):
            response.reward, response.correct, response.error = reward, correct, error
    scorer.metrics = total([metrics for _, metrics in shares])
    return groups


def total(parts: list[dict[str, float]]) -> dict[str, float]:
    """The sum under each name; a name that is missing somewhere counts 0 there."""
    return {
        name: sum(part.get(name, 0.0) for part in parts) for name in dict.fromkeys(n for part in parts for n in part)
    }
