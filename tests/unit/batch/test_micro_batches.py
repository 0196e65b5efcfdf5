"""Micro-batches against a slow definition: who trains on what, and where every token lies."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_megatron.batch.collate import collate
from sppo_megatron.batch.micro_batches import MicroBatchLayout, micro_batch_shape, plan_micro_batches
from sppo_megatron.batch.sequences import make_sequences
from sppo_megatron.batch.training_batch import NOTHING, TrainingBatch, members, regression_columns

FAST = settings(max_examples=60, deadline=None)
PER_SEQUENCE = tuple(regression_columns(np.zeros(1)))


def make_batch(lengths: list[tuple[int, int]], has_rollout: bool = True, masked: bool = False) -> TrainingBatch:
    """lengths: (prompt, response) of each. Tokens are drawn from a range so large that no two agree by chance."""
    rng = np.random.default_rng([n for pair in lengths for n in pair])
    prompts, responses = (
        [rng.integers(1, 2**31 - 1, pair[place]).astype(np.int32) for pair in lengths] for place in (0, 1)
    )
    masks = [rng.random(response) < 0.6 for _, response in lengths] if masked else None
    sequences = make_sequences(prompts, responses, loss_masks=masks)
    old, rollout, ref = -rng.random((3, sequences.total)).astype(np.float32)
    return TrainingBatch(
        sequences,
        old,
        {name: rng.random(len(lengths)).astype(np.float32) for name in PER_SEQUENCE},
        rollout,
        np.full(len(lengths), has_rollout),
        ref,
    )


def units_of(batch: TrainingBatch, size: int = 1) -> np.ndarray:
    """Consecutive sequences; the last unit is short if they don't come out even."""
    count = len(batch.sequences)
    whole = np.append(np.arange(count), np.full(-count % size, NOTHING))
    return whole.reshape(-1, size)


@st.composite
def batches(draw, most: int = 5, longest: int = 9):
    """(batch, units): single responses, pairs, or units of three of which the last may be short."""
    size = draw(st.sampled_from([1, 2, 3]))
    lengths = st.tuples(st.integers(1, longest), st.integers(0, longest))
    count = draw(st.integers(0, most)) * size - (draw(st.integers(0, 1)) if size == 3 else 0)
    count = max(0, count)
    batch = make_batch(draw(st.lists(lengths, min_size=count, max_size=count)), masked=draw(st.booleans()))
    return batch, units_of(batch, size)


@st.composite
def layouts(draw):
    return MicroBatchLayout(
        micro_batch_size=draw(st.integers(1, 5)),
        max_tokens=draw(st.one_of(st.none(), st.integers(1, 64))),
        cp_size=draw(st.sampled_from([1, 2, 4])),
        sequence_parallel_size=draw(st.sampled_from([1, 2])),
        token_multiple=draw(st.sampled_from([1, 16])),
    )


# ------------------------------------------------------------------------------------------------ the plan


@FAST
@given(
    drawn=batches(most=12),
    layout=layouts(),
    dp_size=st.integers(1, 4),
    multiple_of=st.integers(1, 4),
)
def test_plan_holds_every_unit_once_in_equal_counts(drawn, layout, dp_size, multiple_of):
    batch, units = drawn
    plan = plan_micro_batches(units, batch.sequences.num_tokens, layout, dp_size, multiple_of=multiple_of)
    assert len(plan) == dp_size
    assert len({len(micro_batches) for micro_batches in plan}) == 1
    assert len(plan[0]) % multiple_of == 0
    assert len(plan[0]) >= 1
    placed = Counter(tuple(unit) for micro_batches in plan for own in micro_batches for unit in own.tolist())
    assert placed == Counter(map(tuple, units.tolist()))  # whole units: no pair was split


@FAST
@given(drawn=batches(most=12), layout=layouts(), dp_size=st.integers(1, 3))
def test_plan_respects_the_budget(drawn, layout, dp_size):
    batch, units = drawn
    prompts, responses = np.diff(batch.sequences.prompt_offsets), np.diff(batch.sequences.offsets)

    def padded(place):
        tokens = max(1, prompts[place] + responses[place] - 1)
        while layout.cp_size > 1 and tokens % (2 * layout.cp_size):
            tokens += 1
        return tokens

    for micro_batches in plan_micro_batches(units, batch.sequences.num_tokens, layout, dp_size):
        for own in micro_batches:
            chosen = members(own).tolist()
            if layout.max_tokens is not None:
                assert sum(map(padded, chosen)) <= layout.max_tokens or len(own) == 1
            else:
                assert len(chosen) <= layout.micro_batch_size or len(own) == 1


@FAST
@given(drawn=batches(most=12), dp_size=st.integers(1, 4), size=st.integers(1, 4))
def test_padded_shares_differ_by_one_unit_at_most(drawn, dp_size, size):
    batch, units = drawn
    plan = plan_micro_batches(units, batch.sequences.num_tokens, MicroBatchLayout(micro_batch_size=size), dp_size)
    shares = [sum(map(len, micro_batches)) for micro_batches in plan]
    assert max(shares) - min(shares) <= 1
    largest_share = -(-len(units) // dp_size)
    per_micro_batch = max(1, size // units.shape[1]) if len(units) else 1
    assert len(plan[0]) == max(1, -(-largest_share // per_micro_batch))


@pytest.mark.parametrize(
    ("tokens", "budget", "expected"),
    [
        ([5, 4], 8, [[4], [5]]),  # one token above
        ([5, 4], 9, [[4, 5]]),  # exactly full
        ([6, 5, 3, 2], 8, [[2, 6], [3, 5]]),
        ([12, 3, 4], 8, [[3, 4], [12]]),  # too long for any budget: alone
    ],
)
def test_packing_by_hand(tokens, budget, expected):
    units = np.arange(len(tokens))[:, None]
    (micro_batches,) = plan_micro_batches(units, np.array(tokens), MicroBatchLayout(max_tokens=budget), 1)
    assert sorted(sorted(tokens[place] for place in members(own)) for own in micro_batches) == expected


def test_packed_shares_are_balanced_by_tokens():
    tokens = np.array([40, 10, 10, 10, 10, 2])
    plan = plan_micro_batches(np.arange(6)[:, None], tokens, MicroBatchLayout(max_tokens=64), 2)
    assert sorted(int(sum(tokens[own].sum() for own in micro_batches)) for micro_batches in plan) == [40, 42]
    assert [len(micro_batches) for micro_batches in plan] == [1, 1]


@FAST
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    budget=st.integers(1, 50),
)
def test_packing_is_first_fit_decreasing(lengths, budget):
    """Against the definition, bin by bin."""
    bins: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        found = next((b for b in bins if sum(lengths[i] for i in b) + lengths[place] <= budget), None)
        if found is None:
            bins.append(found := [])
        found.append(place)
    layout = MicroBatchLayout(max_tokens=budget)
    [plan] = plan_micro_batches(np.arange(len(lengths))[:, None], np.array(lengths), layout, 1)
    assert [units[:, 0].tolist() for units in plan] == bins


@pytest.mark.parametrize("break_even", [18e3, 1e5])
@pytest.mark.parametrize(("dp_size", "of_a_rank"), [(64, 16), (8, 8)])
def test_ranks_have_equal_work_where_attention_counts(dp_size, of_a_rank, break_even):
    """As even as the best known heuristic makes it, to 5 %; even tokens alone would not be."""
    lengths = np.clip(np.random.default_rng(0).lognormal(np.log(600), 1, dp_size * of_a_rank).astype(int), 1, 8192)
    costs = lengths + lengths**2 / break_even

    def unevenness(layout: MicroBatchLayout) -> float:
        plan = plan_micro_batches(np.arange(len(lengths))[:, None], lengths, layout, dp_size)
        work = np.array([sum(costs[units[:, 0]].sum() for units in of_rank) for of_rank in plan])
        return float(work.max() / work.mean())

    ours = unevenness(MicroBatchLayout(max_tokens=16384, break_even_tokens=break_even))
    best = max(sum(costs[place] for place in part) for part in karmarkar_karp(costs, dp_size)) / costs.sum() * dp_size
    assert ours <= best * 1.05 < unevenness(MicroBatchLayout(max_tokens=16384)) * 1.05


def karmarkar_karp(costs: np.ndarray, count: int) -> list[list[int]]:
    """The largest differencing method: the two most uneven partial partitions are joined, large parts to small."""
    rest = itertools.count()
    heap = [(-cost, next(rest), [(cost, [place]), *[(0.0, [])] * (count - 1)]) for place, cost in enumerate(costs)]
    heapq.heapify(heap)
    while len(heap) > 1:
        (_, _, one), (_, _, other) = heapq.heappop(heap), heapq.heappop(heap)
        joined = sorted(((a + c, b + d) for (a, b), (c, d) in zip(one, other[::-1], strict=True)), reverse=True)
        least = joined[-1][0]
        heapq.heappush(heap, (least - joined[0][0], next(rest), [(cost - least, part) for cost, part in joined]))
    return [part for _, part in heap[0][2]]


def test_equal_units_keep_their_order():
    """What decides ties decides which ranks train on what: a resumed run must do the same."""
    (first, second) = plan_micro_batches(np.arange(7)[:, None], np.full(7, 4), MicroBatchLayout(max_tokens=8), 2)
    assert [own[:, 0].tolist() for own in first] == [[0, 2], [4, 6]]
    assert [own[:, 0].tolist() for own in second] == [[1, 3], [5]]


# ------------------------------------------------------------------------------------------------ the tensors


def whole_grid(parts: list[torch.Tensor], segments: list[int], cp_size: int) -> torch.Tensor:
    """[b, s] from the [b, s/cp] of every context-parallel rank: chunk r, then chunk 2·cp−1−r, of every segment."""
    if cp_size == 1:
        return parts[0]
    whole = torch.full((parts[0].shape[0], sum(segments)), -1, dtype=parts[0].dtype)
    for rank, part in enumerate(parts):
        taken, start = 0, 0
        for length in segments:
            chunk = length // (2 * cp_size)
            for number in (rank, 2 * cp_size - 1 - rank):
                whole[:, start + number * chunk : start + (number + 1) * chunk] = part[:, taken : taken + chunk]
                taken += chunk
            start += length
        assert taken == part.shape[1]
    assert (whole >= 0).all()
    return whole


def collate_on_all(batch, units, layout: MicroBatchLayout, extra_rows: int = 0, extra_multiples: int = 0):
    """The micro-batch of each context-parallel rank, in a shape larger than needed if asked for."""
    b, s = micro_batch_shape(units, batch.sequences.num_tokens, layout)
    shape = (b + (0 if layout.packed else extra_rows), s + extra_multiples * layout.sequence_multiple)
    given_shape = shape if extra_rows or extra_multiples else None
    ranks = [replace(layout, cp_rank=rank) for rank in range(layout.cp_size)]
    return [collate(batch, units, of_rank, given_shape) for of_rank in ranks], shape


def check_against_the_definition(batch, units, layout: MicroBatchLayout, extra_rows: int, extra_multiples: int) -> None:
    sequences, chosen = batch.sequences, members(units).tolist()
    prompts = np.split(sequences.prompt_token_ids, sequences.prompt_offsets[1:-1])
    responses = sequences.split(sequences.token_ids)
    counts = sequences.split(np.ones(sequences.total, np.bool_) if sequences.loss_mask is None else sequences.loss_mask)
    micro_batches, (b, s) = collate_on_all(batch, units, layout, extra_rows, extra_multiples)
    local = s // layout.cp_size
    assert s % (layout.cp_size * layout.sequence_parallel_size * (2 if layout.cp_size > 1 else 1)) == 0

    # the sequences: inputs in order, positions from 0, zeros behind
    segments = [s]
    if layout.packed:
        boundaries = micro_batches[0].cu_seqlens
        segments = boundaries.diff().tolist()
        assert boundaries[0] == 0 and boundaries[-1] == s and boundaries.dtype == torch.int32
        assert all(length > 0 and (layout.cp_size == 1 or length % (2 * layout.cp_size) == 0) for length in segments)
        assert len(segments) in (len(chosen), len(chosen) + 1)
    for micro_batch in micro_batches:
        assert micro_batch.tokens.shape == micro_batch.position_ids.shape == (b, local)
        assert micro_batch.max_seqlen == max(segments)
        assert (micro_batch.cu_seqlens is None) == (not layout.packed)
    tokens = whole_grid([x.tokens for x in micro_batches], segments, layout.cp_size)
    positions = whole_grid([x.position_ids for x in micro_batches], segments, layout.cp_size)
    used = torch.zeros(b, s, dtype=torch.bool)
    for number, place in enumerate(chosen):
        row, start = (0, sum(segments[:number])) if layout.packed else (number, 0)
        room = segments[number] if layout.packed else s
        fed = [*prompts[place].tolist(), *responses[place].tolist()][:-1]
        assert len(fed) <= room
        assert tokens[row, start : start + len(fed)].tolist() == fed
        assert positions[row, start : start + len(fed)].tolist() == list(range(len(fed)))
        used[row, start : start + len(fed)] = True
    assert (tokens[~used] == 0).all()
    padding = whole_grid([x.padding.long() for x in micro_batches], segments, layout.cp_size)
    assert torch.equal(padding.bool(), ~used)

    # the predictions: every token that counts once over the ranks, from the row of the token before it
    seen: Counter = Counter()
    for micro_batch in micro_batches:
        flat, flat_positions = micro_batch.tokens.T.reshape(-1), micro_batch.position_ids.T.reshape(-1)
        assert len(micro_batch.rows) == len(micro_batch.labels) == len(micro_batch.sequence_ids)
        for i, row in enumerate(micro_batch.rows.tolist()):
            number, index = int(micro_batch.sequence_ids[i]), int(micro_batch.token_index[i])
            place = index - int(sequences.offsets[chosen[number]])
            ids = [*prompts[chosen[number]].tolist(), *responses[chosen[number]].tolist()]
            place_in_ids = len(prompts[chosen[number]]) + place
            assert int(micro_batch.labels[i]) == ids[place_in_ids]
            assert int(flat[row]) == ids[place_in_ids - 1]
            assert int(flat_positions[row]) == place_in_ids - 1
            assert layout.packed or row % b == number
            for name in ("old_log_probs", "rollout_log_probs", "ref_log_probs"):
                assert getattr(micro_batch, name)[i] == getattr(batch, name)[index]
            seen[number, place] += 1
    assert seen == Counter((n, int(t)) for n, place in enumerate(chosen) for t in np.flatnonzero(counts[place]))

    # what belongs to whole sequences is the same on every rank
    unit_of = [number for number, unit in enumerate(units.tolist()) for place in unit if place != NOTHING]
    for micro_batch in micro_batches:
        lengths = [int(counts[place].sum()) for place in chosen]
        assert micro_batch.lengths.tolist() == micro_batch.response_lengths == lengths
        assert micro_batch.units.tolist() == unit_of
        assert micro_batch.columns.keys() == batch.columns.keys()
        for name, column in batch.columns.items():
            assert micro_batch.columns[name].tolist() == column[chosen].tolist()


@settings(max_examples=150, deadline=None)
@given(drawn=batches(), layout=layouts(), extra_rows=st.integers(0, 2), extra_multiples=st.integers(0, 2))
def test_collate_equals_the_definition(drawn, layout, extra_rows, extra_multiples):
    check_against_the_definition(*drawn, layout, extra_rows, extra_multiples)


@pytest.mark.parametrize("cp_size", [1, 2, 4])
@pytest.mark.parametrize("sequence_parallel_size", [1, 2])
@pytest.mark.parametrize("max_tokens", [None, 64])
@pytest.mark.parametrize(
    "lengths", [[], [(1, 0)], [(1, 1)], [(6, 0), (1, 0)], [(1, 7), (5, 0), (3, 12)], [(8, 9)] * 3], ids=str
)
def test_collate_at_the_edges(cp_size, sequence_parallel_size, max_tokens, lengths):
    layout = MicroBatchLayout(4, max_tokens, cp_size, 0, sequence_parallel_size)
    batch = make_batch(lengths)
    check_against_the_definition(batch, units_of(batch), layout, extra_rows=0, extra_multiples=0)
    check_against_the_definition(batch, units_of(batch), layout, extra_rows=1, extra_multiples=1)


@FAST
@given(drawn=batches(), layout=layouts())
def test_shape_is_the_smallest_that_fits(drawn, layout):
    batch, units = drawn
    multiple = layout.sequence_parallel_size * (2 * layout.cp_size if layout.cp_size > 1 else 1) * layout.token_multiple
    per_sample = 2 * layout.cp_size if layout.cp_size > 1 else 1
    lengths = (np.diff(batch.sequences.prompt_offsets) + np.diff(batch.sequences.offsets) - 1).tolist()
    padded = [-(-max(1, length) // per_sample) * per_sample for length in lengths]
    needed = sum(padded) if layout.packed else max(padded, default=1)
    b, s = micro_batch_shape(units, batch.sequences.num_tokens, layout)
    assert b == (1 if layout.packed else max(1, len(lengths)))
    assert s % multiple == 0
    assert max(needed, 1) <= s < max(needed, 1) + multiple


def test_a_sequence_may_come_twice():
    """SPIN's human response is paired with every sampled one."""
    batch = make_batch([(2, 3), (2, 4), (3, 2)])
    check_against_the_definition(batch, np.array([[2, 0], [2, 1]]), MicroBatchLayout(max_tokens=64), 0, 0)


def test_before_anything_is_known_but_the_tokens():
    batch = make_batch([(2, 3)])
    bare = TrainingBatch(batch.sequences, np.zeros(3, np.float32))
    ((micro_batch,), _) = collate_on_all(bare, units_of(bare), MicroBatchLayout())
    assert micro_batch.old_log_probs.tolist() == [0, 0, 0] and micro_batch.columns == {}
    assert micro_batch.rollout_log_probs is None and micro_batch.ref_log_probs is None


def test_rollout_log_probs_count_only_if_all_have_them():
    batch = make_batch([(2, 3), (2, 3)])
    batch = replace(batch, has_rollout=np.array([True, False]))
    ((micro_batch,), _) = collate_on_all(batch, units_of(batch), MicroBatchLayout(micro_batch_size=2))
    assert micro_batch.rollout_log_probs is None


def test_to_the_same_device_is_the_batch_itself():
    batch = make_batch([(2, 3)])
    ((micro_batch,), _) = collate_on_all(batch, units_of(batch), MicroBatchLayout())
    assert micro_batch.to(torch.device("cpu")) is micro_batch
    moved = micro_batch.to(torch.device("meta"))
    assert moved.tokens.device.type == moved.columns["target"].device.type == "meta"
    assert moved.cu_seqlens is None and moved.max_seqlen == micro_batch.max_seqlen


@pytest.mark.parametrize("max_tokens", [None, 50])
@pytest.mark.parametrize(("cp_size", "sequence_parallel_size"), [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_each_rank_holds_whole_blocks_of_tokens(max_tokens, cp_size, sequence_parallel_size):
    """FP8's products take multiples of 128 tokens, and a rank multiplies its own share of the sequence."""
    batch = make_batch([(7, 9 + i) for i in range(3)])
    layout = MicroBatchLayout(3, max_tokens, cp_size, 0, sequence_parallel_size, token_multiple=128)
    _, s = micro_batch_shape(units_of(batch), batch.sequences.num_tokens, layout)
    assert s % (cp_size * sequence_parallel_size * 128) == 0
    micro_batch = collate(batch, units_of(batch), layout)
    assert micro_batch.tokens.shape[1] * cp_size == s
    assert len(micro_batch.labels) <= batch.sequences.total
    if max_tokens is not None:
        assert micro_batch.cu_seqlens[-1] == s and micro_batch.padding[0, -1]
