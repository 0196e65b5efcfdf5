"""Buckets and shards against Megatron-Core's own functions, on parameters of odd sizes."""

from __future__ import annotations

import random

import pytest
import torch

from sppo_megatron import policy  # noqa: F401  (Megatron-Core's CPU device)
from sppo_planner.gradient_buffers import cut_buckets, default_bucket_size
from sppo_planner.parameters import Parameter

from megatron.core.distributed import DistributedDataParallelConfig  # isort: skip
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer  # isort: skip


def parameters(count: int, shared: set[int]) -> list[Parameter]:
    """Some of a multiple of 64 elements, so that the next one follows without padding."""
    numbers = random.Random(count)
    elements = [numbers.choice((numbers.randint(1, 5000), 64 * numbers.randint(1, 60))) for _ in range(count)]
    return [Parameter("x", each, is_shared_embedding=index in shared) for index, each in enumerate(elements)]


def megatrons(found: list[Parameter], bucket_size: int | None, ranks: int):
    tensors = []
    for each in found:
        tensor = torch.nn.Parameter(torch.empty(each.elements, device="meta"))
        if each.is_shared_embedding:
            tensor.shared_embedding = True
        tensors.append(tensor)
    config = DistributedDataParallelConfig(use_distributed_optimizer=True)
    return DistributedOptimizer._compute_per_buffer_param_layout(tensors, bucket_size, ranks, config)


@pytest.mark.parametrize("ranks", [1, 2, 6, 64])
@pytest.mark.parametrize("bucket_size", [None, 1, 7000, 10**9])
@pytest.mark.parametrize("shared", [set(), {0}, {29}, {0, 29}])
def test_buckets_are_megatrons(ranks, bucket_size, shared):
    found = parameters(30, shared)
    theirs = megatrons(found, bucket_size, ranks)
    ours = cut_buckets(found, ranks, bucket_size)
    assert [bucket.size for bucket in ours] == [end - start for start, end in theirs.bucket_indices]
    held: list[set[int]] = [set() for _ in ours]
    for start, end, index in theirs.param_index_map.values():
        held[index].update(range(start - theirs.bucket_indices[index][0], end - theirs.bucket_indices[index][0]))
    assert [{i for span in bucket.spans for i in range(*span)} for bucket in ours] == held


@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_every_element_has_one_owner(ranks):
    found = parameters(30, {0})
    for bucket in cut_buckets(found, ranks, 7000):
        owned = [bucket.owned_by(rank, ranks) for rank in range(ranks)]
        assert sum(owned) == sum(end - start for start, end in bucket.spans)
        assert max(owned) <= bucket.size // ranks


def test_no_parameters_no_buckets():
    assert cut_buckets([], 2, None) == []


def test_default_bucket_size_is_the_documented_one():
    assert default_bucket_size(1) == 40_000_000 and default_bucket_size(64) == 64_000_000
