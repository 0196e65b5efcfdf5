"""Scoring spread over ranks: each group is scored on one of them, and every rank gets every score."""

from __future__ import annotations

from typing import Protocol

import torch.distributed as dist

from sppo_megatron.types import Group


class Scorer(Protocol):
    def score(self, groups: list[Group]) -> list[Group]: ...


def score_over_ranks(scorer: Scorer, groups: list[Group], group: dist.ProcessGroup | None = None) -> list[Group]:
    """Scores groups that every rank of `group` (the world where None) holds, in place, each on one rank."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    scorer.score(groups[rank::size])
    mine = [(g.preference, [(r.reward, r.correct, r.error) for r in g.responses]) for g in groups[rank::size]]
    shares: list = [None] * size
    dist.all_gather_object(shares, mine, group=group)
    for place, scored in enumerate(groups):
        scored.preference, responses = shares[place % size][place // size]
        for response, (reward, correct, error) in zip(scored.responses, responses, strict=True):
            response.reward, response.correct, response.error = reward, correct, error
    return groups
