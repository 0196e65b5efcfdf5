"""Collectives and point-to-point calls against known values, made so that a wrong value names its contributor.

The process group is an argument. Every rank contributes rank + 1 in a place of its own, which fp32 holds exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

BLOCK = 4096  # elements of one contribution


@dataclass(frozen=True)
class Mistake:
    """`receiver` found wrong what should have come from `contributor`."""

    collective: str
    contributor: int
    receiver: int


def check_collectives(group: dist.ProcessGroup, device: torch.device) -> list[Mistake]:
    """What this rank received wrongly. Collective over the group."""
    rank, size = group.rank(), group.size()
    checks = {
        "all_reduce": _all_reduce,
        "all_gather": _all_gather,
        "reduce_scatter": _reduce_scatter,
        "broadcast": _broadcast,
        "send and recv": _exchange,
    }
    mistakes = []
    for name, check in checks.items():
        received = check(group, device)  # [size, BLOCK]: row c came from rank c
        expected = torch.arange(1.0, size + 1, device=device).unsqueeze(1)
        wrong = (received != expected).any(dim=1).nonzero().flatten().tolist()
        mistakes += [Mistake(name, contributor, rank) for contributor in wrong]
    return mistakes


def _own(group: dist.ProcessGroup, device: torch.device) -> Tensor:
    """[size, BLOCK]: zeros but for this rank's row."""
    rows = torch.zeros(group.size(), BLOCK, device=device)
    rows[group.rank()] = group.rank() + 1
    return rows


def _all_reduce(group: dist.ProcessGroup, device: torch.device) -> Tensor:
    rows = _own(group, device)
    dist.all_reduce(rows, group=group)
    return rows


def _all_gather(group: dist.ProcessGroup, device: torch.device) -> Tensor:
    rows = torch.empty(group.size(), BLOCK, device=device)
    dist.all_gather_into_tensor(rows, _own(group, device)[group.rank()].unsqueeze(0), group=group)
    return rows


def _reduce_scatter(group: dist.ProcessGroup, device: torch.device) -> Tensor:
    rows = torch.empty(group.size(), BLOCK, device=device)
    dist.reduce_scatter_tensor(rows, _own(group, device).repeat(group.size(), 1), group=group)
    return rows


def _broadcast(group: dist.ProcessGroup, device: torch.device) -> Tensor:
    rows = _own(group, device)
    for source in range(group.size()):
        dist.broadcast(rows[source], group=group, group_src=source)
    return rows


def _exchange(group: dist.ProcessGroup, device: torch.device) -> Tensor:
    """Each rank sends its row to every other one: in step k to the rank k places further on."""
    rank, size = group.rank(), group.size()
    rows = _own(group, device)
    for step in range(1, size):
        source = (rank - step) % size
        pair = [
            dist.P2POp(dist.isend, rows[rank].clone(), group=group, group_peer=(rank + step) % size),
            dist.P2POp(dist.irecv, rows[source], group=group, group_peer=source),
        ]
        for work in dist.batch_isend_irecv(pair):
            work.wait()
    return rows


def suspects(mistakes: Iterable[Mistake]) -> list[int]:
    """The fewest ranks that explain every mistake, the one with the most first: either end may be at fault."""
    left, found = list(mistakes), []
    while left:
        counts = Counter(rank for mistake in left for rank in {mistake.contributor, mistake.receiver})
        worst = max(sorted(counts), key=lambda rank: counts[rank])
        found.append(worst)
        left = [mistake for mistake in left if worst not in (mistake.contributor, mistake.receiver)]
    return found
