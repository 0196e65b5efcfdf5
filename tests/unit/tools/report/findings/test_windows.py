"""Means over iterations and the stretches above a bound, on hand-made series."""

import pytest

from sppo_report.findings.windows import in_words, iteration_means, metric, stretches_above


def test_means_of_an_iteration(make_run, steps_of):
    lines = steps_of(2, per_iteration=3, loss=lambda iteration, place: 10.0 * iteration + place)
    del lines[1]["loss"]
    run = make_run(lines)
    assert iteration_means(run, metric("loss")) == {0: 1.0, 1: 11.0}
    assert iteration_means(run, metric("loss"), after_first_step=True) == {0: 2.0, 1: 11.5}
    assert iteration_means(run, metric("absent")) == {}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0] * 10, [(0, 9)]),
        ([0.0] * 10, []),
        ([0] * 5 + [4] + [0] * 5, []),  # one odd iteration in a window of five
        ([0] * 10 + [2] * 5 + [0] * 10, [(8, 16)]),  # three of the five suffice
        ([2] * 6 + [0] * 9 + [2] * 6, [(0, 7), (13, 20)]),
        ([2.0, 2.0], [(0, 1)]),  # a run shorter than a window
        ([], []),
    ],
)
def test_stretches(values, expected):
    found = stretches_above(dict(enumerate(values)), bound=0.99)
    assert [(stretch.first, stretch.last) for stretch in found] == expected
    for stretch in found:
        inside = values[stretch.first : stretch.last + 1]
        assert stretch.mean == pytest.approx(sum(inside) / len(inside))


def test_words():
    values = [1.0] * 8 + [0.0] * 10 + [1.0] * 5 + [0.0] * 10 + [1.0] * 6 + [0.0] * 10 + [1.0] * 7
    stretches = stretches_above(dict(enumerate(values)), bound=0.9)
    assert in_words(stretches) == "iterations 0–7, 33–38, 49–55 and 1 shorter stretches"
    assert in_words(stretches_above({7: 1.0}, bound=0.5)) == "iteration 7"
