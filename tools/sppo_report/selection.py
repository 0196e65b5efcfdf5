"""Which iterations and which of their responses are shown."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from sppo_report.responses import ResponseRow


def choose_iterations(iterations: Sequence[int], limit: int) -> list[int]:
    """At most `limit` of them, evenly spread, the first and the last among them (the last alone if limit is 1)."""
    count = len(iterations)
    if count <= limit:
        return list(iterations)
    if limit < 2:
        return list(iterations[count - limit :])
    return [iterations[i * (count - 1) // (limit - 1)] for i in range(limit)]


def choose_responses(rows: Sequence[ResponseRow], limit: int) -> list[tuple[ResponseRow, list[str]]]:
    """At most `limit` responses with why each is shown, all different, in the order of the reasons.

    Every reason has its turn before one gets its second response.
    """
    ranked = {reason: ranking for reason, ranking in _rankings(rows).items() if ranking}
    chosen: dict[int, tuple[ResponseRow, list[str]]] = {}
    for rank in range(max(map(len, ranked.values()), default=0)):
        for reason, ranking in ranked.items():
            if rank >= len(ranking):
                continue
            row = ranking[rank]
            if row.content in chosen:
                chosen[row.content][1].append(reason)
            elif len(chosen) < limit:
                chosen[row.content] = (row, [reason])
        if len(chosen) >= limit:
            break
    order = list(ranked)
    return sorted(chosen.values(), key=lambda pair: order.index(pair[1][0]))


def _rankings(rows: Sequence[ResponseRow]) -> dict[str, list[ResponseRow]]:
    """Every reason with its responses, the most fitting first. Of equals one from a group with a spread comes first."""
    scored = [(row, row.score) for row in rows if row.score is not None]
    compared = [(row, row.mismatch) for row in rows if row.mismatch is not None]
    sampled = [(row, row.mean_log_prob) for row in rows if row.mean_log_prob is not None]
    mean = fmean(score for _, score in scored) if scored else 0.0
    best = sorted(scored, key=lambda pair: (-pair[1], pair[0].is_degenerate))
    worst = sorted(scored, key=lambda pair: (pair[1], pair[0].is_degenerate))
    mismatched = sorted(compared, key=lambda pair: -pair[1])
    least_likely = sorted(sampled, key=lambda pair: pair[1])
    typical = sorted(scored, key=lambda pair: abs(pair[1] - mean))
    return {
        "best": _distinct(best),
        "worst": _distinct(worst),
        "most mismatched": _distinct(mismatched),
        "scoring failed": [row for row in rows if row.is_failed],
        "cut off": [row for row in rows if row.is_truncated],
        "degenerate group": [row for row, _ in worst if row.is_degenerate and row.place == 0],
        "least likely": _distinct(least_likely),
        "longest": sorted(rows, key=lambda row: -row.length),
        "typical": _distinct(typical),
    }


def _distinct(ranking: Sequence[tuple[ResponseRow, float]]) -> list[ResponseRow]:
    """Without responses that repeat another of their group."""
    return list({row.content: row for row, _ in reversed(ranking)}.values())[::-1]
