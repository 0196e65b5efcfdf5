"""Micro-batches against a slow definition: who trains on what, and where every token lies."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_megatron.batch.micro_batches import Layout, Sample, collate, micro_batch_shape, plan_micro_batches

FAST = settings(max_examples=60, deadline=None)
PER_SEQUENCE = (
    "target",
    "weight",
    "reward",
    "win_rate",
    "preference",
    "truncated",
    "importance_weight",
    "ref_log_ratio",
)


def make_sample(index: int, prompt: int, response: int, with_log_probs: bool = True) -> Sample:
    """Tokens are drawn from a range so large that no two places agree by chance."""
    rng = np.random.default_rng([index, prompt, response])
    floats = rng.random((2, response)).astype(np.float32)
    return Sample(
        index=index,
        prompt_token_ids=rng.integers(1, 2**31 - 1, prompt).astype(np.int32),
        response_token_ids=rng.integers(1, 2**31 - 1, response).astype(np.int32),
        **{name: float(rng.random()) for name in PER_SEQUENCE if name != "truncated"},
        truncated=bool(rng.integers(2)),
        old_log_probs=-floats[0] if with_log_probs else None,
        rollout_log_probs=-floats[1] if with_log_probs else None,
    )


@st.composite
def unit_lists(draw, most: int = 5, longest: int = 9):
    size = draw(st.sampled_from([1, 2]))
    lengths = st.tuples(st.integers(1, longest), st.integers(0, longest))
    shapes = draw(st.lists(st.tuples(*[lengths] * size), max_size=most))
    flat = [make_sample(i, *shape) for i, shape in enumerate(shape for unit in shapes for shape in unit)]
    return [tuple(flat[i : i + size]) for i in range(0, len(flat), size)]


@st.composite
def layouts(draw):
    return Layout(
        micro_batch_size=draw(st.integers(1, 5)),
        max_tokens=draw(st.one_of(st.none(), st.integers(1, 64))),
        cp_size=draw(st.sampled_from([1, 2, 4])),
        sequence_parallel_size=draw(st.sampled_from([1, 2])),
        token_multiple=draw(st.sampled_from([1, 16])),
    )


# ------------------------------------------------------------------------------------------------ the plan


@FAST
@given(
    units=unit_lists(most=12),
    layout=layouts(),
    dp_size=st.integers(1, 4),
    multiple_of=st.integers(1, 4),
)
def test_plan_holds_every_unit_once_in_equal_counts(units, layout, dp_size, multiple_of):
    plan = plan_micro_batches(units, layout, dp_size, multiple_of=multiple_of)
    assert len(plan) == dp_size
    assert len({len(micro_batches) for micro_batches in plan}) == 1
    assert len(plan[0]) % multiple_of == 0
    assert len(plan[0]) >= 1
    placed = Counter(id(unit) for micro_batches in plan for units_ in micro_batches for unit in units_)
    assert placed == Counter(id(unit) for unit in units)  # the same tuples: no pair was split


@FAST
@given(units=unit_lists(most=12), layout=layouts(), dp_size=st.integers(1, 3))
def test_plan_respects_the_budget(units, layout, dp_size):
    def padded(sample):
        tokens = max(1, len(sample.prompt_token_ids) + len(sample.response_token_ids) - 1)
        while layout.cp_size > 1 and tokens % (2 * layout.cp_size):
            tokens += 1
        return tokens

    for micro_batches in plan_micro_batches(units, layout, dp_size):
        for units_ in micro_batches:
            samples = [sample for unit in units_ for sample in unit]
            if layout.max_tokens is not None:
                assert sum(map(padded, samples)) <= layout.max_tokens or len(units_) == 1
            else:
                assert len(samples) <= layout.micro_batch_size or len(units_) == 1


@FAST
@given(units=unit_lists(most=12), dp_size=st.integers(1, 4), size=st.integers(1, 4))
def test_padded_shares_differ_by_one_unit_at_most(units, dp_size, size):
    plan = plan_micro_batches(units, Layout(micro_batch_size=size), dp_size)
    shares = [sum(map(len, micro_batches)) for micro_batches in plan]
    assert max(shares) - min(shares) <= 1
    largest_share = -(-len(units) // dp_size)
    per_micro_batch = max(1, size // len(units[0])) if units else 1
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
    units = [
        (make_sample(i, 1, count),) for i, count in enumerate(tokens)
    ]  # a prompt of 1 feeds as many as it predicts
    (micro_batches,) = plan_micro_batches(units, Layout(max_tokens=budget), 1)
    assert sorted(sorted(unit[0].num_tokens for unit in units_) for units_ in micro_batches) == expected


def test_packed_shares_are_balanced_by_tokens():
    units = [(make_sample(i, 1, length),) for i, length in enumerate([40, 10, 10, 10, 10, 2])]
    plan = plan_micro_batches(units, Layout(max_tokens=64), 2)
    loads = [sum(unit[0].num_tokens for units_ in micro_batches for unit in units_) for micro_batches in plan]
    assert sorted(loads) == [40, 42]
    assert [len(micro_batches) for micro_batches in plan] == [1, 1]


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


def collate_on_all(units, layout: Layout, extra_rows: int = 0, extra_multiples: int = 0):
    """The micro-batch of each context-parallel rank, in a shape larger than needed where asked for."""
    b, s = micro_batch_shape(units, layout)
    shape = (b + (0 if layout.packed else extra_rows), s + extra_multiples * layout.sequence_multiple)
    given_shape = shape if extra_rows or extra_multiples else None
    names = ("micro_batch_size", "max_tokens", "cp_size", "sequence_parallel_size", "token_multiple")
    fixed = {name: getattr(layout, name) for name in names}
    batches = [collate(units, Layout(**fixed, cp_rank=rank), given_shape) for rank in range(layout.cp_size)]
    return batches, shape


def check_against_the_definition(units, layout: Layout, extra_rows: int, extra_multiples: int) -> None:
    samples = [sample for unit in units for sample in unit]
    batches, (b, s) = collate_on_all(units, layout, extra_rows, extra_multiples)
    local = s // layout.cp_size
    assert s % (layout.cp_size * layout.sequence_parallel_size * (2 if layout.cp_size > 1 else 1)) == 0

    # the sequences: inputs in order, positions from 0, zeros behind
    segments = [s]
    if layout.packed:
        boundaries = batches[0].cu_seqlens
        segments = boundaries.diff().tolist()
        assert boundaries[0] == 0 and boundaries[-1] == s and boundaries.dtype == torch.int32
        assert all(length > 0 and (layout.cp_size == 1 or length % (2 * layout.cp_size) == 0) for length in segments)
        assert len(segments) in (len(samples), len(samples) + 1)
    for batch in batches:
        assert batch.tokens.shape == batch.position_ids.shape == (b, local)
        assert batch.max_seqlen == max(segments)
        assert (batch.cu_seqlens is None) == (not layout.packed)
    tokens = whole_grid([batch.tokens for batch in batches], segments, layout.cp_size)
    positions = whole_grid([batch.position_ids for batch in batches], segments, layout.cp_size)
    used = torch.zeros(b, s, dtype=torch.bool)
    for number, sample in enumerate(samples):
        row, start = (0, sum(segments[:number])) if layout.packed else (number, 0)
        room = segments[number] if layout.packed else s
        fed = [*sample.prompt_token_ids.tolist(), *sample.response_token_ids.tolist()][:-1]
        assert len(fed) <= room
        assert tokens[row, start : start + len(fed)].tolist() == fed
        assert positions[row, start : start + len(fed)].tolist() == list(range(len(fed)))
        used[row, start : start + len(fed)] = True
    assert (tokens[~used] == 0).all()
    padding = whole_grid([batch.padding.long() for batch in batches], segments, layout.cp_size)
    assert torch.equal(padding.bool(), ~used)

    # the predictions: every response token once over the ranks, from the row of the token before it
    seen: Counter = Counter()
    for batch in batches:
        flat, flat_positions = batch.tokens.T.reshape(-1), batch.position_ids.T.reshape(-1)
        assert len(batch.rows) == len(batch.labels) == len(batch.sequence_ids) == len(batch.response_positions)
        for i, row in enumerate(batch.rows.tolist()):
            number, place = int(batch.sequence_ids[i]), int(batch.response_positions[i])
            sample = samples[number]
            ids = [*sample.prompt_token_ids.tolist(), *sample.response_token_ids.tolist()]
            place_in_ids = len(sample.prompt_token_ids) + place
            assert int(batch.labels[i]) == ids[place_in_ids]
            assert int(flat[row]) == ids[place_in_ids - 1]
            assert int(flat_positions[row]) == place_in_ids - 1
            assert layout.packed or row % b == number
            assert batch.old_log_probs[i] == sample.old_log_probs[place]
            assert batch.rollout_log_probs[i] == sample.rollout_log_probs[place]
            seen[number, place] += 1
    expected = [(n, place) for n, sample in enumerate(samples) for place in range(len(sample.response_token_ids))]
    assert seen == Counter(expected)

    # what belongs to whole sequences is the same on every rank
    for batch in batches:
        assert batch.sample_indices.tolist() == [sample.index for sample in samples]
        assert batch.sample_indices.dtype == torch.int64
        assert (
            batch.lengths.tolist() == batch.response_lengths == [len(sample.response_token_ids) for sample in samples]
        )
        for name in PER_SEQUENCE:
            expected_values = torch.tensor([float(getattr(sample, name)) for sample in samples])
            assert torch.equal(getattr(batch, name), expected_values)
        if samples:
            gaps = [
                sum(float(a) - float(b) for a, b in zip(x.old_log_probs, x.rollout_log_probs, strict=True))
                for x in samples
            ]
            expected_gaps = torch.tensor(gaps, dtype=torch.float32)
            torch.testing.assert_close(batch.rollout_log_ratio, expected_gaps, rtol=1e-6, atol=1e-6)


@settings(max_examples=150, deadline=None)
@given(units=unit_lists(), layout=layouts(), extra_rows=st.integers(0, 2), extra_multiples=st.integers(0, 2))
def test_collate_equals_the_definition(units, layout, extra_rows, extra_multiples):
    check_against_the_definition(units, layout, extra_rows, extra_multiples)


@pytest.mark.parametrize("cp_size", [1, 2, 4])
@pytest.mark.parametrize("sequence_parallel_size", [1, 2])
@pytest.mark.parametrize("max_tokens", [None, 64])
@pytest.mark.parametrize(
    "lengths", [[], [(1, 0)], [(1, 1)], [(6, 0), (1, 0)], [(1, 7), (5, 0), (3, 12)], [(8, 9)] * 3], ids=str
)
def test_collate_at_the_edges(cp_size, sequence_parallel_size, max_tokens, lengths):
    layout = Layout(4, max_tokens, cp_size, 0, sequence_parallel_size)
    units = [(make_sample(i, *shape),) for i, shape in enumerate(lengths)]
    check_against_the_definition(units, layout, extra_rows=0, extra_multiples=0)
    check_against_the_definition(units, layout, extra_rows=1, extra_multiples=1)


@FAST
@given(units=unit_lists(), layout=layouts())
def test_shape_is_the_smallest_that_fits(units, layout):
    multiple = layout.sequence_parallel_size * (2 * layout.cp_size if layout.cp_size > 1 else 1) * layout.token_multiple
    per_sample = 2 * layout.cp_size if layout.cp_size > 1 else 1
    lengths = [len(x.prompt_token_ids) + len(x.response_token_ids) - 1 for unit in units for x in unit]
    padded = [-(-max(1, length) // per_sample) * per_sample for length in lengths]
    needed = sum(padded) if layout.packed else max(padded, default=1)
    b, s = micro_batch_shape(units, layout)
    assert b == (1 if layout.packed else max(1, len(lengths)))
    assert s % multiple == 0
    assert max(needed, 1) <= s < max(needed, 1) + multiple


def test_before_the_old_log_probs_are_known():
    (batch,), _ = collate_on_all([(make_sample(0, 2, 3, with_log_probs=False),)], Layout())
    assert batch.old_log_probs.tolist() == [0, 0, 0]
    assert batch.rollout_log_probs is None and batch.rollout_log_ratio is None
    sample = make_sample(0, 2, 3)
    sample.old_log_probs = None
    (batch,), _ = collate_on_all([(sample,)], Layout())
    assert batch.rollout_log_probs.tolist() == sample.rollout_log_probs.tolist()
    assert batch.rollout_log_ratio.tolist() == [0]


def test_a_response_of_one_token_counts_and_an_empty_one_does_not():
    assert make_sample(0, 3, 1).is_valid and not make_sample(0, 3, 0).is_valid


def test_rollout_log_probs_count_only_where_all_have_them():
    units = [(make_sample(0, 2, 3),), (make_sample(1, 2, 3, with_log_probs=False),)]
    (batch,), _ = collate_on_all(units, Layout(micro_batch_size=2))
    assert batch.rollout_log_probs is None and batch.rollout_log_ratio is None


def test_to_the_same_device_is_the_batch_itself():
    (batch,), _ = collate_on_all([(make_sample(0, 2, 3),)], Layout())
    assert batch.to(torch.device("cpu")) is batch
    moved = batch.to(torch.device("meta"))
    assert moved.tokens.device.type == moved.lengths.device.type == "meta"
    assert moved.cu_seqlens is None and moved.max_seqlen == batch.max_seqlen


@pytest.mark.parametrize("max_tokens", [None, 50])
@pytest.mark.parametrize(("cp_size", "sequence_parallel_size"), [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_each_rank_holds_whole_blocks_of_tokens(max_tokens, cp_size, sequence_parallel_size):
    """FP8's products take multiples of 128 tokens, and a rank multiplies its own share of the sequence."""
    units = [(make_sample(i, 7, 9 + i),) for i in range(3)]
    layout = Layout(3, max_tokens, cp_size, 0, sequence_parallel_size, token_multiple=128)
    _, s = micro_batch_shape(units, layout)
    assert s % (cp_size * sequence_parallel_size * 128) == 0
    batch = collate(units, layout)
    assert batch.tokens.shape[1] * cp_size == s
    assert len(batch.labels) <= sum(len(unit[0].response_token_ids) for unit in units)
    if max_tokens is not None:
        assert batch.cu_seqlens[-1] == s and batch.padding[0, -1]
