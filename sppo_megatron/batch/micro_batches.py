"""Which data-parallel rank trains on what, and how it is cut into micro-batches.

Two layouts: padded [b, s], one sequence a row; packed (THD) [1, t], sequences one after the other under a token budget.
Every rank computes the plan of all data-parallel ranks from the same data, so no communication is needed to agree.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from sppo_megatron.batch.training_batch import NOTHING, members


@dataclass(frozen=True)
class MicroBatchLayout:
    """How micro-batches are cut. packed: THD under max_tokens, else micro_batch_size rows. cp: context parallel.

    Token counts are padded to sequence_multiple: 2·cp for the zigzag, times tp under sequence parallelism, times
    token_multiple, which each rank's share of the tokens is a multiple of (blocks of FP8).
    """

    micro_batch_size: int = 1
    max_tokens: int | None = None
    cp_size: int = 1
    cp_rank: int = 0
    sequence_parallel_size: int = 1
    token_multiple: int = 1

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


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def plan_micro_batches(
    units: np.ndarray, num_tokens: np.ndarray, layout: MicroBatchLayout, dp_size: int, *, multiple_of: int = 1
) -> list[list[np.ndarray]]:
    """The micro-batches of every data-parallel rank: plan[dp_rank][micro_batch] is int64 [units, sequences of a unit].

    units: int64 [U, W], places of sequences; the sequences of a unit stay together. num_tokens: int64 [N], of all
    sequences. Every rank gets the same number of micro-batches, a multiple of multiple_of (the interleaved schedule
    asks for a multiple of the pipeline size); empty ones fill up.
    """
    if layout.packed:
        padded = layout.padded_lengths(num_tokens)
        lengths = np.where(units != NOTHING, padded[units], 0).sum(axis=1)
        plan = [_pack(units[share], lengths[share], layout) for share in _balance(lengths, dp_size)]
    else:
        size = max(1, layout.micro_batch_size // units.shape[1])
        shares = [units[rank::dp_size] for rank in range(dp_size)]
        plan = [[share[i : i + size] for i in range(0, len(share), size)] for share in shares]
    count = round_up(max(1, *(len(micro_batches) for micro_batches in plan)), multiple_of)
    return [micro_batches + [units[:0]] * (count - len(micro_batches)) for micro_batches in plan]


def _balance(lengths: np.ndarray, dp_size: int) -> list[list[int]]:
    """Longest first onto the rank with the fewest tokens. Returns places in `lengths` for each rank."""
    shares: list[list[int]] = [[] for _ in range(dp_size)]
    loads = [(0, rank) for rank in range(dp_size)]
    for place in np.argsort(-lengths, kind="stable").tolist():
        load, rank = heapq.heappop(loads)
        shares[rank].append(place)
        heapq.heappush(loads, (load + int(lengths[place]), rank))
    return shares


def _pack(units: np.ndarray, lengths: np.ndarray, layout: MicroBatchLayout) -> list[np.ndarray]:
    """First fit decreasing; a unit above the budget gets a micro-batch of its own."""
    assert layout.max_tokens is not None
    bins: list[list[int]] = []
    free: list[int] = []
    for place in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[place])
        slot = next((i for i, room in enumerate(free) if room >= length), None)
        if slot is None:
            bins.append([])
            free.append(layout.max_tokens)
            slot = len(bins) - 1
        bins[slot].append(place)
        free[slot] -= length
    return [units[places] for places in bins]


def micro_batch_shape(units: np.ndarray, num_tokens: np.ndarray, layout: MicroBatchLayout) -> tuple[int, int]:
    """(b, s) over all context-parallel ranks that these units need."""
    lengths = layout.padded_lengths(num_tokens[members(units)])
    if layout.packed:
        return 1, round_up(max(1, int(lengths.sum())), layout.sequence_multiple)
    return max(1, len(lengths)), round_up(int(lengths.max(initial=1)), layout.sequence_multiple)
