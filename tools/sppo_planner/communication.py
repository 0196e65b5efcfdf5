"""What one GPU receives over its links, in bytes by kind of parallelism.

Ring collectives: of S bytes over n ranks an all-gather or reduce-scatter brings (n − 1)/n · S to each, an all-reduce
twice that. Tensor and sequence parallelism: Korthikanti et al. 2022, section 4.2. The pipeline: Narayanan et al. 2021.
"""

from __future__ import annotations

from dataclasses import dataclass

from sppo_megatron.rollout.registry import engine_kind
from sppo_planner.arithmetic import Part, Term, term
from sppo_planner.job import Job
from sppo_planner.model_state import MAIN_GRAD_BYTES, Rank, model_state


@dataclass(frozen=True)
class Pass:
    """Passes over micro-batches of one replica. forwards: 1, or 2 if layers are recomputed in the backward pass."""

    micro_batches: int
    forwards: int
    backward: bool


def layer_traffic(job: Job, each: Pass) -> dict[str, Part]:
    """Of tp, cp, ep and pp: everything but the data-parallel groups, by the names of `ParallelSizes.spans`."""
    parts = {
        "tp": Part("tensor parallel", tuple(_tensor_parallel(job, each))),
        "cp": Part("context parallel", tuple(_context_parallel(job, each)), "keys and values go round the ring"),
        "ep": Part("expert parallel", tuple(_expert_parallel(job, each)), "all-to-all, even routing"),
        "pp": Part("pipeline", tuple(_pipeline(job, each)), "hidden states forward, their gradients back"),
    }
    return {kind: part for kind, part in parts.items() if part.terms}


def gradient_traffic(job: Job) -> dict[str, Part]:
    """Of one optimizer step: gradients reduced in fp32, and parameters gathered under the distributed optimizer."""
    sharded = job.config.optimizer.use_distributed_optimizer
    state = model_state(job.table, job.sizes, Rank(), itemsize=job.itemsize, distributed_optimizer=sharded)
    of_group = {
        "dp": ("data parallel", state.gradient_elements, job.sizes.dp * job.sizes.cp),
        "edp": ("expert data parallel", state.expert_gradient_elements, job.sizes.edp),
    }
    parts = {}
    for kind, (name, elements, ranks) in of_group.items():
        if ranks == 1 or not elements:
            continue
        if sharded:
            bytes_of = {"gradients reduce-scattered": MAIN_GRAD_BYTES, "parameters gathered": job.itemsize}
        else:
            bytes_of = {"gradients all-reduced": 2 * MAIN_GRAD_BYTES}
        terms = [_ring(term(what, elements=elements, bytes=size), ranks) for what, size in bytes_of.items()]
        parts[kind] = Part(name, tuple(terms))
    return parts


def push_traffic(job: Job) -> Part | None:
    """The weights that the rollout engine gets, once an iteration; None if it shares the trainer's."""
    engine, sizes = engine_kind(job.config), job.sizes
    if not engine.has_own_weights:
        return None
    weights = term("all weights", parameters=job.table.total, bytes=job.itemsize)
    if not engine.in_ranks:
        return Part("weight push", (weights,), "whole tensors, broadcast to every server")
    ranks = max(sizes.tp, sizes.etp * sizes.ep) * sizes.pp
    if ranks == 1:
        return None
    return Part("weight push", (_ring(weights, ranks),), "whole tensors, gathered on every rank")


def _ring(whole: Term, ranks: int) -> Term:
    return whole.times(other_ranks=ranks - 1).over(ranks=ranks)


def _hidden(job: Job) -> dict[str, float]:
    return {"tokens": job.tokens.count, "hidden": job.architecture.hidden_size, "bytes": job.itemsize}


def _layers(job: Job) -> tuple[float, float]:
    """(dense, mixture) layers of a stage, on average."""
    a = job.architecture
    mixture = sum(a.mixture.layers) if a.mixture else 0
    return (a.num_layers - mixture) / job.sizes.pp, mixture / job.sizes.pp


def _tensor_parallel(job: Job, each: Pass) -> list[Term]:
    """Attention and MLP each gather and scatter the sequence in a pass (an all-reduce is both), and gather the inputs
    once more for the gradients of weights. A mixture's MLP does so only under expert tensor parallelism.
    """
    sizes, (dense, mixture) = job.sizes, _layers(job)
    count = {"micro_batches": each.micro_batches}
    collectives = 2 * each.forwards + (2 + sizes.sequence_parallel) * each.backward
    terms = []
    if sizes.tp > 1:
        pieces = 2 * dense + mixture
        hidden = term("hidden states", **count, layer_halves=pieces, collectives=collectives, **_hidden(job))
        terms.append(_ring(hidden, sizes.tp))
        head = term("hidden states at the head", **count, collectives=1 + 4 * each.backward, **_hidden(job))
        terms.append(_ring(head, sizes.tp))
    if sizes.etp > 1 and mixture:
        routed = _dispatched(job).times(**count, layers=mixture, collectives=2 * each.forwards + 2 * each.backward)
        terms.append(_ring(routed.times(etp=sizes.etp), sizes.etp))
    return terms


def _context_parallel(job: Job, each: Pass) -> list[Term]:
    """Keys and values in each pass, and their gradients in the backward one."""
    a, sizes = job.architecture, job.sizes
    if sizes.cp == 1:
        return []
    return [
        term(
            "keys and values",
            micro_batches=each.micro_batches,
            layers=job.layers_of_stage,
            passes=each.forwards + 2 * each.backward,
            other_ranks=sizes.cp - 1,
            tokens=job.tokens.count,
            elements=2 * max(a.num_query_groups // sizes.tp, 1) * a.head_dim,
            bytes=job.itemsize,
        )
    ]


def _dispatched(job: Job) -> Term:
    a = job.architecture
    assert a.mixture is not None
    return term(
        "dispatched tokens",
        tokens=job.tokens.count // job.sizes.sequence_shards,
        choices=a.mixture.num_experts_per_token,
        hidden=a.hidden_size,
        bytes=job.itemsize,
    )


def _expert_parallel(job: Job, each: Pass) -> list[Term]:
    """Each pass dispatches tokens and combines them."""
    if job.sizes.ep == 1:
        return []
    _, mixture = _layers(job)
    exchanges = 2 * (each.forwards + each.backward)
    tokens = _dispatched(job).times(micro_batches=each.micro_batches, layers=mixture, exchanges=exchanges)
    return [_ring(tokens, job.sizes.ep)]


def _pipeline(job: Job, each: Pass) -> list[Term]:
    sizes = job.sizes
    if sizes.pp == 1:
        return []
    directions = 1 + each.backward  # recomputation stays within a stage
    hidden = term(
        "hidden states", micro_batches=each.micro_batches, chunks=sizes.vpp, directions=directions, **_hidden(job)
    )
    return [hidden.over(sequence_shards=sizes.sequence_shards)]
