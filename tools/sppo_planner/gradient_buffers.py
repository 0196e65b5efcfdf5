"""Megatron's contiguous gradient buffers: their buckets, their padding, and what the distributed optimizer shards.

Pure numbers. The rules are those of Megatron-Core's DistributedDataParallel and DistributedOptimizer: parameters from
the last to the first, each starting at a multiple of 64 elements, buckets ending at a multiple of 128 and of the
data-parallel size; a tied embedding that two pipeline stages hold has a bucket of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sppo_planner.parameters import Parameter


@dataclass(frozen=True)
class Bucket:
    """size: elements, padding included. spans: (start, end) of the parameters in it, joined if nothing pads them."""

    size: int
    spans: tuple[tuple[int, int], ...]

    def owned_by(self, rank: int, ranks: int) -> int:
        """Elements of parameters in this rank's equal share of the bucket: what it keeps optimizer states of."""
        start, end = self.size // ranks * rank, self.size // ranks * (rank + 1)
        return sum(max(0, min(end, stop) - max(start, first)) for first, stop in self.spans)


def default_bucket_size(data_parallel_size: int) -> int:
    """Elements after which Megatron closes a bucket if gradients are reduced during the backward pass."""
    return max(40_000_000, 1_000_000 * data_parallel_size)


def cut_buckets(parameters: Sequence[Parameter], shards: int, bucket_size: int | None) -> list[Bucket]:
    """The buckets of one buffer under the distributed optimizer.

    parameters: of one model chunk and one data-parallel group, in the model's order. shards: the ranks of that group,
    context-parallel ones included. bucket_size: elements, None for one bucket.
    """
    multiple = math.lcm(shards, 128)
    buckets: list[Bucket] = []
    spans: list[tuple[int, int]] = []

    def close() -> None:
        if spans:
            buckets.append(Bucket(_round_up(spans[-1][1], multiple), tuple(spans)))
            spans.clear()

    for parameter in reversed(parameters):
        if parameter.is_shared_embedding:
            close()
        end = spans[-1][1] if spans else 0
        start = _round_up(end, 64)
        first = spans.pop()[0] if spans and start == end else start
        spans.append((first, start + parameter.elements))
        if parameter.is_shared_embedding or (bucket_size is not None and spans[-1][1] >= bucket_size):
            close()
    close()
    return buckets


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
