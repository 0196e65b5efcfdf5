"""Flat arrays against the lists that they were made of."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from sppo_megatron.batch.sequences import difference, make_sequences, sequences_of
from sppo_megatron.objective.base import Units
from sppo_megatron.types import Group, Prompt, Response


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


RESPONSES = [ids(5, 6, 7), ids(), ids(8), ids(9, 10)]
MASKS = [np.array([True, False, True]), None, np.array([False]), None]


def test_lengths_and_tokens():
    sequences = make_sequences([ids(1), ids(2, 3)], RESPONSES, prompt_of=[0, 0, 1, 1])
    assert len(sequences) == 4 and sequences.total == 6
    assert sequences.lengths.tolist() == [3, 0, 1, 2]
    assert sequences.num_tokens.tolist() == [3, 1, 2, 3]  # an empty response to one prompt token still takes a place
    assert [part.tolist() for part in sequences.split(sequences.token_ids)] == [x.tolist() for x in RESPONSES]
    assert sequences.sums(np.arange(6.0)).tolist() == [3, 0, 3, 9]


def test_a_mask_takes_tokens_out_of_lengths_and_sums_and_not_of_what_is_fed():
    sequences = make_sequences([ids(1)] * 4, RESPONSES, loss_masks=MASKS)
    assert sequences.lengths.tolist() == [2, 0, 0, 2]
    assert sequences.num_tokens.tolist() == [3, 1, 1, 2]
    assert sequences.sums(np.array([1.0, np.nan, 2.0, np.inf, 3.0, 4.0])).tolist() == [3, 0, 0, 7]


@pytest.mark.parametrize("masked", [False, True])
def test_sums_of_many_responses_are_those_of_each(masked):
    """More tokens than are worked on at a time, one response longer than that, empty ones at both ends."""
    rng = np.random.default_rng(0)
    sizes = [0, 7, *rng.integers(0, 900, 150).tolist(), 70_000, 0, 5, 0]
    masks = [rng.random(size) < 0.5 for size in sizes] if masked else None
    sequences = make_sequences([ids(1)] * len(sizes), [ids(*range(size)) for size in sizes], loss_masks=masks)
    one, other = rng.normal(size=(2, sequences.total)).astype(np.float32)
    found = sequences.sums_of(difference, one, other)
    for place, (first, end) in enumerate(itertools.pairwise(sequences.offsets)):
        values = one[first:end].astype(np.float64) - other[first:end]
        expected = values if masks is None else values[masks[place]]
        assert found[place] == pytest.approx(math.fsum(expected), rel=1e-12, abs=1e-12)
        assert sequences.lengths[place] == len(expected)


def test_the_first_ones():
    sequences = make_sequences([ids(1)] * 4, RESPONSES, loss_masks=MASKS)
    first = sequences.first(3)
    assert (len(first), first.total, first.lengths.tolist()) == (3, 4, [2, 0, 0])
    assert len(sequences.first(9)) == 4 and len(sequences.first(0)) == 0 and sequences.first(0).total == 0


def test_of_groups():
    groups = [
        Group(Prompt(0, ids(1), human_token_ids=ids(3)), [Response(ids(5, 6)), Response(ids(7), loss_mask=MASKS[2])]),
        Group(Prompt(1, ids(2, 2), human_token_ids=ids(4, 4)), [Response(ids(8))]),
    ]
    sequences = sequences_of(groups)
    assert sequences.prompt_of.tolist() == [0, 0, 1] and sequences.token_ids.tolist() == [5, 6, 7, 8]
    assert sequences.lengths.tolist() == [2, 0, 1]
    with_human = sequences_of(groups, Units.HUMAN_VS_SAMPLE)
    assert with_human.prompt_of.tolist() == [0, 0, 1, 0, 1] and with_human.lengths.tolist() == [2, 0, 1, 1, 2]


def test_nothing_at_all():
    sequences = make_sequences([], [])
    assert len(sequences) == 0 and sequences.total == 0 and sequences.split(np.zeros(0)) == []


def test_a_mask_of_another_length():
    with pytest.raises(AssertionError, match="one entry for each token"):
        make_sequences([ids(1)], [ids(5, 6)], loss_masks=[np.array([True])])
