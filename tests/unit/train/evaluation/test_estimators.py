"""pass@k and maj@k against every draw there is, counted one by one in rational numbers."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, product
from math import prod

import pytest

from sppo_megatron.train.evaluation.estimators import maj_at_k, pass_at_k


def mean(values) -> Fraction:
    values = list(values)
    return Fraction(sum(values, Fraction(0)), len(values))


def vote(answers: list[tuple[str | None, bool]]) -> Fraction:
    """The share of right ones among the answers that win, averaged over those that are given equally often."""
    given = [text for text, _ in answers if text is not None]
    if not given:
        return Fraction(0)
    most = max(map(given.count, given))
    winners = sorted({text for text in given if given.count(text) == most})
    return mean(mean(Fraction(right) for text, right in answers if text == winner) for winner in winners)


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_k_is_the_share_of_draws_with_a_right_answer(n):
    for right, k in product(range(n + 1), range(1, n + 1)):
        draws = combinations([True] * right + [False] * (n - right), k)
        assert pass_at_k(n, right, k) == mean(Fraction(any(draw)) for draw in draws)


def test_pass_at_k_as_the_paper_computes_it():
    """1 − Π (1 − k/i) for i from n − c + 1 to n; and no bias: the mean over n answers is 1 − (1 − p)^k."""
    assert pass_at_k(200, 13, 10) == 1 - prod(1 - Fraction(10, i) for i in range(188, 201))
    n, k, p = 6, 3, Fraction(2, 7)
    outcomes = product([True, False], repeat=n)
    weights = {answers: p ** sum(answers) * (1 - p) ** (n - sum(answers)) for answers in outcomes}
    assert sum(w * pass_at_k(n, sum(a), k) for a, w in weights.items()) == 1 - (1 - p) ** k


CASES = [
    ([(3, 3), (2, 0), (1, 0)], 1),
    ([(2, 2), (2, 0), (2, 0)], 0),
    ([(1, 1), (1, 0), (1, 1), (1, 0), (1, 0)], 2),
    ([(4, 1), (3, 3)], 0),  # equal answers that were scored differently
    ([(5, 0)], 2),
    ([], 3),
    ([(1, 1)], 6),
]


@pytest.mark.parametrize(("classes", "silent"), CASES)
def test_maj_at_k_is_the_mean_vote_of_all_draws(classes, silent):
    answers: list[tuple[str | None, bool]] = [(None, False)] * silent
    for name, (count, right) in zip("abcdefg", classes, strict=False):
        answers += [(name, i < right) for i in range(count)]
    for k in range(1, len(answers) + 1):
        assert maj_at_k(classes, silent, k) == mean(map(vote, combinations(answers, k))), k


def test_a_vote_of_one_and_of_two_is_a_single_answer():
    """Of two that differ each wins half of the time."""
    classes = [(9, 9), (4, 0), (11, 0)]
    assert maj_at_k(classes, 0, 1) == maj_at_k(classes, 0, 2) == pass_at_k(24, 9, 1)


def test_many_answers_are_exact():
    assert maj_at_k([(600, 600), (599, 0)], 900, 2099) == 1
    assert maj_at_k([(600, 600), (600, 0), (600, 0)], 0, 1800) == Fraction(1, 3)
    assert maj_at_k([(20, 20), (20, 0)], 0, 21) == Fraction(1, 2)
    assert pass_at_k(5000, 1, 2500) == Fraction(1, 2)


@pytest.mark.parametrize(("n", "right", "k"), [(4, 1, 0), (4, 1, 5), (4, 5, 2), (4, -1, 2)])
def test_refuses(n, right, k):
    with pytest.raises(ValueError, match="must be from"):
        pass_at_k(n, right, k)
    if 0 <= right <= n:
        with pytest.raises(ValueError, match="k: must be from 1 to"):
            maj_at_k([(right, right)], n - right, k)
