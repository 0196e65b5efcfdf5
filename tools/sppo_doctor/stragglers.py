"""Which ranks and which pairs fall behind the others, from what `links` measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from sppo_doctor.links import Link, Pair

# On a busy machine figures spread by a factor of 2; what is worth a look is further off.
SLOW = 4.0
# What a link costs, in seconds and in seconds a byte, and how that is written.
_COSTS = (
    (lambda link: link.latency, lambda cost: f"{cost * 1e6:.0f} µs of latency"),
    (lambda link: 1 / link.bandwidth, lambda cost: f"{1e-9 / cost:.3g} GB/s"),
)


def slow_ranks(compute: Sequence[float], links: Mapping[Pair, Link], hosts: Sequence[str]) -> dict[int, str]:
    """Why, for each rank that computes SLOW times less than the others, or whose best link is SLOW times worse.

    compute: FLOP/s of each rank. The others are their median. Links within a host are compared with each other, links
    between hosts with each other; of two ranks, which share their one link, neither is slower.
    """
    reasons: dict[int, list[str]] = {rank: [] for rank in range(len(compute))}
    for rank, speed in enumerate(compute):
        others = _median_without(rank, dict(enumerate(compute)))
        if others is not None and speed * SLOW < others:
            reasons[rank].append(f"computes {speed:.3g} FLOP/s, the others {others:.3g}")
    for alike in _alike(links, hosts):
        ranks = {rank for pair in alike for rank in pair}
        for cost, write in _COSTS:
            best = {rank: min(cost(link) for pair, link in alike.items() if rank in pair) for rank in ranks}
            for rank in sorted(ranks) if len(ranks) > 2 else ():
                others = _median_without(rank, best)
                if others is not None and best[rank] > SLOW * others:
                    reasons[rank].append(f"its best link has {write(best[rank])}, the others' {write(others)}")
    return {rank: "; ".join(texts) for rank, texts in reasons.items() if texts}


def slow_pairs(links: Mapping[Pair, Link], hosts: Sequence[str], slow: Mapping[int, str]) -> dict[Pair, str]:
    """Pairs of ranks, none of them slow itself, whose bandwidth is SLOW times less than the median of links alike."""
    found = {}
    for alike in _alike(links, hosts):
        median = statistics.median(link.bandwidth for link in alike.values())
        for pair, link in alike.items():
            if link.bandwidth * SLOW < median and not slow.keys() & set(pair):
                found[pair] = f"{link.bandwidth / 1e9:.3g} GB/s, the median is {median / 1e9:.3g}"
    return found


def _alike(links: Mapping[Pair, Link], hosts: Sequence[str]) -> Iterator[dict[Pair, Link]]:
    """The links within hosts and those between hosts, if there are any."""
    for within in (True, False):
        alike = {pair: link for pair, link in links.items() if (hosts[pair[0]] == hosts[pair[1]]) == within}
        if alike:
            yield alike


def _median_without(rank: int, values: Mapping[int, float]) -> float | None:
    others = [value for other, value in values.items() if other != rank]
    return statistics.median(others) if others else None
