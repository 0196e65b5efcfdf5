"""pass@k and maj@k of one prompt, exactly: means over all ways to draw k of its n answers without putting any back.

Both are unbiased for k new answers, because n independent answers contain k of them in every way alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from math import comb

import numpy as np


def pass_at_k(n: int, right: int, k: int) -> Fraction:
    """P(one of k answers is right) = 1 − C(n − right, k)/C(n, k), "Evaluating Large Language Models Trained on Code"
    (arXiv:2107.03374), equation 1. right: of the n answers. Raises ValueError unless 1 <= k <= n and 0 <= right <= n.
    """
    _check(n, k)
    if not 0 <= right <= n:
        raise ValueError(f"right: must be from 0 to n={n}, got {right}")
    return 1 - Fraction(comb(n - right, k), comb(n, k))


def maj_at_k(classes: Sequence[tuple[int, int]], silent: int, k: int) -> Fraction:
    """P(the vote of k answers is right): the answer given most often wins, and lots are drawn among equals.

    classes: (answers, right ones among them) of each different answer. Of one that wins, the share that is right
    counts: 0 or 1, unless equal answers were scored differently. silent: answers that give nothing to vote for, of
    which a sample may consist: it is wrong.
    Raises ValueError unless 1 <= k <= the number of answers.
    """
    _check(sum(count for count, _ in classes) + silent, k)
    return _maj_at_k(tuple(sorted(classes)), silent, k)


@lru_cache(maxsize=65536)
def _maj_at_k(classes: tuple[tuple[int, int], ...], silent: int, k: int) -> Fraction:
    n = sum(count for count, _ in classes) + silent
    if k == n:  # one draw
        most = max((count for count, _ in classes), default=0)
        winners = [Fraction(right, count) for count, right in classes if count == most]
        return sum(winners, Fraction(0)) / max(1, len(winners))
    won = Fraction(0)
    for place, (count, right) in enumerate(classes):
        if right:
            others = [c for i, (c, _) in enumerate(classes) if i != place]
            won += Fraction(right, count) * _wins(count, others, silent, k)
    return won / comb(n, k)


def _wins(count: int, others: Sequence[int], silent: int, k: int) -> Fraction:
    """In how many of the C(n, k) draws the class of `count` answers wins, a tie among m counted as 1/m."""
    total = Fraction(0)
    for votes in range(1, min(count, k) + 1):
        most_ties = min(len(others), k // votes - 1)
        # ways[i, j]: to draw i of the other answers so that j classes have as many votes and none has more
        ways = np.zeros((k - votes + 1, most_ties + 1), dtype=object)
        ways[0, 0] = 1
        for other in others:
            drawn = [comb(other, i) for i in range(min(other, votes - 1, k - votes) + 1)]
            tied = comb(other, votes) if other >= votes else 0
            ways = _with_class(ways, drawn, votes, tied)
        rest = [comb(silent, k - votes - i) for i in range(k - votes + 1)]
        for ties in range(most_ties + 1):
            draws = sum(int(w) * r for w, r in zip(ways[:, ties], rest, strict=True))
            total += Fraction(comb(count, votes) * draws, ties + 1)
    return total


def _with_class(ways: np.ndarray, drawn: Sequence[int], votes: int, tied: int) -> np.ndarray:
    """drawn[i]: ways to draw i < votes answers of the class; tied: ways to draw `votes` of them, one more tie."""
    longer = np.zeros_like(ways)
    for i, number in enumerate(drawn):
        longer[i:] += number * ways[: len(ways) - i]
    if tied and len(ways) > votes and ways.shape[1] > 1:
        longer[votes:, 1:] += tied * ways[: len(ways) - votes, :-1]
    return longer


def _check(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k: must be from 1 to the number of answers, {n}, got {k}")
