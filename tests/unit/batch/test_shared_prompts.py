"""Packs in which responses share their prompt, against a slow definition: where every token lies and what it sees."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_megatron.batch.collate import collate
from sppo_megatron.batch.micro_batches import MicroBatchLayout, micro_batch_shape, plan_micro_batches
from sppo_megatron.batch.sequences import make_sequences
from sppo_megatron.batch.shared_prompts import shared_prompts
from sppo_megatron.batch.training_batch import TrainingBatch, cut_minibatches, members, single_units

FAST = settings(max_examples=60, deadline=None)
Groups = list[tuple[int, list[int]]]


def make_batch(groups: Groups, masked: bool = False) -> TrainingBatch:
    """(tokens of the prompt, tokens of each response) of every group; no two tokens agree."""
    total = sum(prompt + sum(responses) for prompt, responses in groups)
    tokens = iter(np.random.default_rng(0).permutation(total).astype(np.int32) + 1)

    def draw(count: int) -> np.ndarray:
        return np.array([next(tokens) for _ in range(count)], np.int32)

    prompts = [draw(prompt) for prompt, _ in groups]
    responses = [draw(length) for _, lengths in groups for length in lengths]
    prompt_of = [number for number, (_, lengths) in enumerate(groups) for _ in lengths]
    masks = [np.arange(len(response)) % 3 != 1 for response in responses] if masked else None
    sequences = make_sequences(prompts, responses, prompt_of, masks)
    return TrainingBatch(sequences, np.zeros(sequences.total, np.float32))


GROUPS = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.integers(0, 9), min_size=1, max_size=6)), min_size=1, max_size=5
)


def seen_tokens(batch, row: int) -> list[int]:
    """The tokens that the one at this place of the pack attends to, in order, by the segments."""
    tokens, start = batch.tokens[0].tolist(), 0
    for own, first, prompt in zip(batch.segments.own, batch.segments.first, batch.segments.prompt, strict=True):
        if start <= row < start + own:
            return tokens[first : first + prompt] + tokens[start : row + 1]
        start += own
    raise AssertionError(row)


@FAST
@given(groups=GROUPS, masked=st.booleans(), multiple=st.sampled_from([1, 16]), seed=st.integers(0, 3))
def test_every_response_token_is_predicted_from_its_whole_sequence(groups, masked, multiple, seed):
    batch = make_batch(groups, masked)
    sequences, sharing = batch.sequences, shared_prompts(batch.sequences, True)
    layout = MicroBatchLayout(max_tokens=1 << 20, token_multiple=multiple)
    ((units,),) = plan_micro_batches(single_units(len(sequences)), sequences.num_tokens, layout, 1, sharing=sharing)
    made = collate(batch, units, layout, sharing=sharing)
    assert made.tokens.shape[1] % multiple == 0
    chosen, predicted = members(units), []
    for row, label, index, sequence in zip(
        made.rows.tolist(), made.labels.tolist(), made.token_index.tolist(), made.sequence_ids.tolist(), strict=True
    ):
        place = int(chosen[sequence])
        first = int(sequences.offsets[place])
        prompt_of = int(sequences.prompt_of[place])
        prompt = sequences.prompt_token_ids[slice(*sequences.prompt_offsets[prompt_of : prompt_of + 2])].tolist()
        before = prompt + sequences.token_ids[first:index].tolist()
        assert label == sequences.token_ids[index]
        if made.segments is not None:
            assert seen_tokens(made, row) == before
        assert made.position_ids[0, row] == len(before) - 1
        predicted.append(index)
    counted = np.arange(sequences.total) if sequences.loss_mask is None else np.flatnonzero(sequences.loss_mask)
    assert sorted(predicted) == counted.tolist()
    if made.segments is not None:
        assert sum(made.segments.own) == made.tokens.shape[1]
    if all(any(responses) for _, responses in groups):  # no two tokens agree: each lies there once
        assert max(Counter(made.tokens[0, ~made.padding[0]].tolist()).values()) == 1


@FAST
@given(groups=GROUPS, budget=st.integers(1, 60), dp_size=st.integers(1, 4), setting=st.sampled_from([True, "auto"]))
def test_the_plan_holds_every_sequence_once_within_the_budget(groups, budget, dp_size, setting):
    sequences = make_batch(groups).sequences
    sharing, layout = shared_prompts(sequences, setting), MicroBatchLayout(max_tokens=budget, break_even_tokens=20.0)
    plan = plan_micro_batches(single_units(len(sequences)), sequences.num_tokens, layout, dp_size, sharing=sharing)
    assert len({len(micro_batches) for micro_batches in plan}) == 1
    placed = [place for micro_batches in plan for units in micro_batches for place in members(units).tolist()]
    assert sorted(placed) == list(range(len(sequences)))
    for units in (units for micro_batches in plan for units in micro_batches if len(units)):
        _, tokens = micro_batch_shape(units, sequences.num_tokens, layout, sharing)
        assert tokens <= budget or len(units) == 1


@pytest.mark.parametrize(
    ("prompt", "response", "count", "setting", "expected"),
    [
        (100, 20, 4, "auto", 100 + 4 * 19),  # 476 tokens apart, 2.7 times as many
        (10, 100, 8, "auto", 8 * 109),  # 872 against 802: 1.09 times as many
        (10, 100, 8, True, 10 + 8 * 99),
        (50, 1, 3, True, 50),  # nothing is fed behind the prompt
        (50, 7, 1, True, 56),
    ],
)
def test_it_is_shared_if_that_saves_enough(prompt, response, count, setting, expected):
    sequences = make_batch([(prompt, [response] * count)]).sequences
    layout = MicroBatchLayout(max_tokens=10_000)
    shape = micro_batch_shape(single_units(count), sequences.num_tokens, layout, shared_prompts(sequences, setting))
    assert shape == (1, expected)


def test_a_prompt_too_large_for_one_micro_batch_is_cut_into_few():
    """Each part has the prompt again: 40 + 8·9 = 112 tokens don't fit into 80, 40 + 4·9 = 76 do."""
    sequences = make_batch([(40, [10] * 8)]).sequences
    layout, sharing = MicroBatchLayout(max_tokens=80), shared_prompts(sequences, True)
    ((first, second),) = plan_micro_batches(single_units(8), sequences.num_tokens, layout, 1, sharing=sharing)
    assert sorted(map(len, (first, second))) == [4, 4]


def test_ranks_without_a_prompt_of_their_own_share_one():
    """Two prompts on four ranks: the busiest has half of the responses of one, not all."""
    sequences = make_batch([(10, [50] * 8), (10, [50] * 8)]).sequences
    layout, sharing = MicroBatchLayout(max_tokens=1000), shared_prompts(sequences, True)
    plan = plan_micro_batches(single_units(16), sequences.num_tokens, layout, 4, sharing=sharing)
    assert [sum(len(units) for units in of_rank) for of_rank in plan] == [4, 4, 4, 4]


def test_responses_of_a_prompt_stay_together_when_shuffled():
    prompt_of = np.repeat(np.arange(6), 4)
    batches = cut_minibatches(single_units(24), 8, 2, shuffle=True, seed=1, iteration=0, prompt_of=prompt_of)
    orders = [np.concatenate([batch[:, 0] for batch in batches[epoch : epoch + 3]]) for epoch in (0, 3)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(24))
        assert (np.diff(prompt_of[order].reshape(6, 4)) == 0).all()
        assert (np.diff(order.reshape(6, 4)) < 0).any() and (np.diff(prompt_of[order]) < 0).any()
    assert (orders[0] != orders[1]).any()


def test_without_a_shared_prompt_the_pack_is_as_without_the_setting():
    batch = make_batch([(3, [4]), (5, [2]), (2, [0])])
    layout, units = MicroBatchLayout(max_tokens=64, token_multiple=16), single_units(3)
    plain, with_setting = (
        collate(batch, units, layout, sharing=sharing) for sharing in (None, shared_prompts(batch.sequences, True))
    )
    assert with_setting.segments is None
    for name in ("tokens", "position_ids", "padding", "cu_seqlens", "rows", "labels", "token_index"):
        assert torch.equal(getattr(plain, name), getattr(with_setting, name)), name
