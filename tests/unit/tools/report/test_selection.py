"""Which responses are shown: the extremes of each kind, no response twice, every reason in turn."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppo_report.responses import ResponseRow
from sppo_report.selection import choose_iterations, choose_responses


def row(number, **fields):
    values = dict.fromkeys(("score", "mismatch", "mean_log_prob")) | dict.fromkeys(
        ("is_truncated", "is_failed", "is_degenerate"), False
    )
    return ResponseRow(**(values | {"line": number, "place": 0, "length": 5, "content": number} | fields))


ROWS = [
    row(0, score=0.5, mismatch=0.1, mean_log_prob=-0.5),
    row(1, score=1.0, mismatch=0.0, mean_log_prob=-0.1, is_degenerate=True),
    row(2, score=1.0, mismatch=0.2, mean_log_prob=-0.2),
    row(3, score=0.0, mismatch=0.3, mean_log_prob=-3.0),
    row(4, score=0.6, mismatch=2.0, mean_log_prob=-0.4, length=9),
    row(5, score=0.4, mismatch=0.1, mean_log_prob=-0.6, is_failed=True),
    row(6, score=0.4, mismatch=0.1, mean_log_prob=-0.6, is_truncated=True),
]


def test_the_extremes_of_each_kind():
    ((best, _),) = choose_responses(ROWS, 1)
    assert best.line == 2, "of equals, the one whose group has a spread"
    reasons = {chosen.line: why for chosen, why in choose_responses(ROWS, 7)}
    assert reasons[3][:2] == ["worst", "least likely"]
    assert reasons[4][:2] == ["most mismatched", "longest"]
    assert (reasons[5][0], reasons[6][0]) == ("scoring failed", "cut off")
    assert "degenerate group" in reasons[1]


def test_every_reason_has_its_turn_before_one_has_a_second():
    assert [why[0] for _, why in choose_responses(ROWS, 3)] == ["best", "worst", "most mismatched"]


def test_a_repeated_response_is_shown_once():
    twins = [row(0, score=1.0, content=7), row(0, place=1, score=1.0, content=7), row(1, score=0.5)]
    assert [chosen.content for chosen, _ in choose_responses(twins, 5)] == [7, 1]


def test_without_scores_and_log_probs():
    ((only, why),) = choose_responses([row(0)], 5)
    assert (only.line, why) == (0, ["longest"])
    assert choose_responses([], 5) == []


numbers = st.none() | st.floats(-5, 5)
rows = st.lists(
    st.builds(
        ResponseRow,
        line=st.integers(1, 5),
        place=st.integers(0, 3),
        length=st.integers(0, 9),
        content=st.integers(0, 12),
        score=numbers,
        mismatch=numbers,
        mean_log_prob=numbers,
        is_truncated=st.booleans(),
        is_failed=st.booleans(),
        is_degenerate=st.booleans(),
    ),
    max_size=20,
)


@given(rows, st.integers(1, 8))
def test_as_many_as_asked_and_all_different(found, limit):
    chosen = choose_responses(found, limit)
    contents = [row.content for row, _ in chosen]
    assert len(contents) == len(set(contents)) == min(limit, len({row.content for row in found}))
    assert all(why for _, why in chosen)


@pytest.mark.parametrize(
    ("count", "limit", "expected"),
    [(3, 5, [0, 1, 2]), (10, 1, [9]), (10, 2, [0, 9]), (10, 4, [0, 3, 6, 9]), (0, 4, [])],
)
def test_iterations_are_spread_evenly(count, limit, expected):
    assert choose_iterations(range(count), limit) == expected
