"""Flat arrays against the lists that they were made of."""

from __future__ import annotations

import numpy as np
import pytest

from sppo_megatron.batch.sequences import make_sequences, sequences_of
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
    with_human = sequences_of(groups, with_human_responses=True)
    assert with_human.prompt_of.tolist() == [0, 0, 1, 0, 1] and with_human.lengths.tolist() == [2, 0, 1, 1, 2]


def test_nothing_at_all():
    sequences = make_sequences([], [])
    assert len(sequences) == 0 and sequences.total == 0 and sequences.split(np.zeros(0)) == []


def test_a_mask_of_another_length():
    with pytest.raises(AssertionError, match="one entry for each token"):
        make_sequences([ids(1)], [ids(5, 6)], loss_masks=[np.array([True])])
