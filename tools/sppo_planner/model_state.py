"""Bytes of weights, gradients and optimizer states on one rank, as Megatron-Core allocates them, exactly.

Step counters of the optimizer, a few bytes a parameter, are left out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from sppo_planner.arithmetic import Part, Term, term
from sppo_planner.gradient_buffers import Bucket, cut_buckets, default_bucket_size
from sppo_planner.parallel_sizes import ParallelSizes
from sppo_planner.parameters import Parameter, ParameterTable

MAIN_GRAD_BYTES = 4  # grad_reduce_in_fp32


@dataclass(frozen=True)
class Rank:
    """Which rank: pipeline stage and places in the data-parallel (with context parallel) and expert groups."""

    stage: int = 0
    data_rank: int = 0
    expert_rank: int = 0
    expert_data_rank: int = 0


@dataclass(frozen=True)
class ModelState:
    """weights, gradients, optimizer: bytes. elements: of this rank's parameters, without padding."""

    weights: Part
    gradients: Part
    optimizer: Part
    elements: int
    gradient_elements: int
    expert_gradient_elements: int


@lru_cache(maxsize=256)
def model_state(
    table: ParameterTable,
    sizes: ParallelSizes,
    rank: Rank,
    *,
    itemsize: int,
    distributed_optimizer: bool,
    overlap_grad_reduce: bool = False,
) -> ModelState:
    """itemsize: bytes of a parameter, 2 or 4; in 2 bytes the optimizer keeps fp32 parameters, too."""
    chunks = table.of_stage(sizes, rank.stage, rank.expert_rank)
    parameters = [parameter for chunk in chunks for parameter in chunk]
    elements = sum(parameter.elements for parameter in parameters)
    dense = expert = owned = elements
    if distributed_optimizer:
        bucket_size = default_bucket_size(sizes.dp) if overlap_grad_reduce and rank.stage == 0 else None
        of_dense = _buckets(chunks, False, sizes.dp * sizes.cp, bucket_size)
        of_experts = _buckets(chunks, True, sizes.edp, bucket_size)
        dense, expert = (sum(bucket.size for bucket in buckets) for buckets in (of_dense, of_experts))
        owned = sum(bucket.owned_by(rank.data_rank, sizes.dp * sizes.cp) for bucket in of_dense)
        owned += sum(bucket.owned_by(rank.expert_data_rank, sizes.edp) for bucket in of_experts)
    else:
        expert = sum(parameter.elements for parameter in parameters if parameter.is_expert)
        dense = elements - expert
    padding = dense + expert - elements
    return ModelState(
        _weights(parameters, padding, itemsize),
        Part("gradients", (term("main_grad buffer, fp32", elements=dense + expert, bytes=MAIN_GRAD_BYTES),)),
        _optimizer(owned, itemsize, sizes if distributed_optimizer else None),
        elements,
        dense,
        expert,
    )


def _buckets(chunks: list[list[Parameter]], of_experts: bool, shards: int, bucket_size: int | None) -> list[Bucket]:
    """Of all chunks; Megatron cuts only the first one, whose communication is on the critical path."""
    buckets = []
    for index, chunk in enumerate(chunks):
        group = [parameter for parameter in chunk if parameter.is_expert == of_experts]
        buckets += cut_buckets(group, shards, bucket_size if index == 0 else None)
    return buckets


def _weights(parameters: list[Parameter], padding: int, itemsize: int) -> Part:
    counts = Counter((parameter.kind, parameter.elements) for parameter in parameters)
    terms: list[Term] = [
        term(kind, tensors=count, elements=elements, bytes=itemsize) for (kind, elements), count in counts.items()
    ]
    if padding:
        terms.append(term("padding of the buffers", elements=padding, bytes=itemsize))
    return Part("weights", tuple(terms))


def _optimizer(owned: int, itemsize: int, sizes: ParallelSizes | None) -> Part:
    where = "all of this rank's parameters" if sizes is None else "this rank's share over the data-parallel ranks"
    terms = [term("exp_avg and exp_avg_sq, fp32", elements=owned, bytes=8)]
    if itemsize < 4:
        terms.insert(0, term("main parameters, fp32", elements=owned, bytes=4))
    return Part("optimizer", tuple(terms), f"Adam's states of {where}")
