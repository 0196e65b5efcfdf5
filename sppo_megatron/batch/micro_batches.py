"""Which data-parallel rank trains on what, and how it is cut into micro-batches.

Two layouts: padded [b, s], one sequence a row; packed (THD) [1, t], sequences one after the other under a token budget.
Every rank computes the plan of all data-parallel ranks from the same data, so no communication is needed to agree.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sppo_megatron.batch.shared_prompts import Parcels, SharedPrompts, SharingChoice
from sppo_megatron.batch.training_batch import NOTHING, members


@dataclass(frozen=True)
class MicroBatchLayout:
    """How micro-batches are cut. packed: THD under max_tokens, else micro_batch_size rows. cp: context parallel.

    Token counts are padded to sequence_multiple: 2·cp for the zigzag, times tp under sequence parallelism, times
    token_multiple, which each rank's share of the tokens is a multiple of (blocks of FP8).
    break_even_tokens: the length at which attention costs as much as all else; None: the cost is the tokens' alone.
    shared_prompts: as train.shared_prompts, for packed micro-batches of cp_size 1.
    """

    micro_batch_size: int = 1
    max_tokens: int | None = None
    cp_size: int = 1
    cp_rank: int = 0
    sequence_parallel_size: int = 1
    token_multiple: int = 1
    break_even_tokens: float | None = None
    shared_prompts: SharingChoice = False

    @property
    def packed(self) -> bool:
        return self.max_tokens is not None

    @property
    def segment_multiple(self) -> int:
        return 2 * self.cp_size if self.cp_size > 1 else 1

    @property
    def sequence_multiple(self) -> int:
        return self.segment_multiple * self.sequence_parallel_size * self.token_multiple

    def padded_lengths(self, num_tokens: np.ndarray) -> np.ndarray:
        """Tokens that sequences of num_tokens take."""
        return -(-num_tokens // self.segment_multiple) * self.segment_multiple

    def costs(self, num_tokens: np.ndarray) -> np.ndarray:
        """int64: the work of sequences of num_tokens, in that of a token without attention."""
        lengths = self.padded_lengths(num_tokens)
        if self.break_even_tokens is None:
            return lengths
        return (lengths + lengths**2 / self.break_even_tokens).astype(np.int64)


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def plan_micro_batches(
    units: np.ndarray,
    num_tokens: np.ndarray,
    layout: MicroBatchLayout,
    dp_size: int,
    *,
    multiple_of: int = 1,
    sharing: SharedPrompts | None = None,
) -> list[list[np.ndarray]]:
    """The micro-batches of every data-parallel rank: plan[dp_rank][micro_batch] is int64 [units, sequences of a unit].

    units: int64 [U, W], places of sequences; the sequences of a unit stay together. num_tokens: int64 [N], of all
    sequences. Every rank gets the same number of micro-batches, a multiple of multiple_of (the interleaved schedule
    asks for a multiple of the pipeline size); empty ones fill up. sharing: None if no prompt is shared.
    """
    if layout.packed:
        parcels, shares = _assign(units, num_tokens, layout, dp_size, sharing)
        lengths = np.asarray(parcels.lengths, np.int64)
        plan = [
            [units[np.concatenate([parcels.places[share[i]] for i in together])] for together in packed]
            for share, packed in ((share, _pack(lengths[share], layout)) for share in shares)
        ]
    else:
        size = max(1, layout.micro_batch_size // units.shape[1])
        rows = [units[rank::dp_size] for rank in range(dp_size)]
        plan = [[own[i : i + size] for i in range(0, len(own), size)] for own in rows]
    count = round_up(max(1, *(len(micro_batches) for micro_batches in plan)), multiple_of)
    return [micro_batches + [units[:0]] * (count - len(micro_batches)) for micro_batches in plan]


def _assign(
    units: np.ndarray, num_tokens: np.ndarray, layout: MicroBatchLayout, dp_size: int, sharing: SharedPrompts | None
) -> tuple[Parcels, list[list[int]]]:
    """The units that stay together, and which of them each rank has."""
    if sharing is None or not len(units):
        lengths, costs = (
            np.where(units != NOTHING, of_sequences[units], 0).sum(axis=1)
            for of_sequences in (layout.padded_lengths(num_tokens), layout.costs(num_tokens))
        )
        parcels = Parcels(list(np.arange(len(units))[:, None]), lengths.tolist(), costs.tolist())
        return parcels, _balance(parcels.costs, dp_size)[0]
    assert layout.max_tokens is not None
    whole, there = sharing.added(members(units[np.argsort(sharing.prompt_of[units[:, 0]], kind="stable")]))
    total = int(layout.costs(whole).sum() - layout.costs(there).sum())
    # Large parcels repeat few prompts and small ones make equal ranks: whichever the busiest rank has less of.
    tries = []
    for part in (1, 2, 4) if dp_size > 1 else (1,):
        parcels = sharing.parcels(units, layout.max_tokens, max(1.0, total / (dp_size * part)), layout.costs)
        tries.append((parcels, *_balance(parcels.costs, dp_size)))
    parcels, shares, _ = min(tries, key=lambda one: one[2])
    return parcels, shares


def _balance(costs: list[int], dp_size: int) -> tuple[list[list[int]], int]:
    """The most costly first onto the rank with the least work: places in `costs` for each rank, and the most work."""
    shares: list[list[int]] = [[] for _ in range(dp_size)]
    loads = [(0, rank) for rank in range(dp_size)]
    for place in np.argsort(-np.asarray(costs, np.int64), kind="stable").tolist():
        load, rank = heapq.heappop(loads)
        shares[rank].append(place)
        heapq.heappush(loads, (load + int(costs[place]), rank))
    return shares, max(loads)[0]


def _pack(lengths: np.ndarray, layout: MicroBatchLayout) -> list[list[int]]:
    """Places in `lengths` for each micro-batch: first fit decreasing; what is above the budget is alone."""
    assert layout.max_tokens is not None
    bins: list[list[int]] = [[] for _ in lengths]
    room = _FirstFit(len(lengths), layout.max_tokens)
    for place in np.argsort(-lengths, kind="stable").tolist():
        bins[room.take(int(lengths[place]))].append(place)
    return [places for places in bins if places]


class _FirstFit:
    """The room in `count` bins, as a tree whose nodes hold the most of any bin below: O(log count) a look-up.

    An empty bin takes whatever its size.
    """

    def __init__(self, count: int, size: int) -> None:
        self._leaves = 1 << max(0, count - 1).bit_length()
        self._most = [size] * (2 * self._leaves)
        self._size = size

    def take(self, amount: int) -> int:
        """The first bin with room for the amount, which it then has less."""
        most, node, fits = self._most, 1, min(amount, self._size)
        while node < self._leaves:
            node *= 2
            if most[node] < fits:
                node += 1
        found = node - self._leaves
        most[node] -= amount
        while node > 1:
            node //= 2
            most[node] = max(most[2 * node], most[2 * node + 1])
        return found


def micro_batch_shapes(
    micro_batches: Sequence[np.ndarray],
    num_tokens: np.ndarray,
    layout: MicroBatchLayout,
    *,
    equal: bool,
    sharing: SharedPrompts | None = None,
) -> list[tuple[int, int]]:
    """`micro_batch_shape` of each. equal: all have the largest, for the stages of a pipeline exchange one shape."""
    shapes = [micro_batch_shape(units, num_tokens, layout, sharing) for units in micro_batches]
    return [(max(b for b, _ in shapes), max(s for _, s in shapes))] * len(shapes) if equal else shapes


def micro_batch_shape(
    units: np.ndarray, num_tokens: np.ndarray, layout: MicroBatchLayout, sharing: SharedPrompts | None = None
) -> tuple[int, int]:
    """(b, s) over all context-parallel ranks that these units need."""
    chosen = members(units)
    lengths = layout.padded_lengths(num_tokens[chosen])
    if layout.packed:
        total = int(lengths.sum()) if sharing is None else sharing.tokens(chosen)
        return 1, round_up(max(1, total), layout.sequence_multiple)
    return max(1, len(lengths)), round_up(int(lengths.max(initial=1)), layout.sequence_multiple)
