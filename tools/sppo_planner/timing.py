"""Seconds of each stage of an iteration: roofs of compute and bandwidth times assumed efficiencies. An estimate.

Nothing is assumed to overlap, except the reduction of gradients if parallelism.overlap_grad_reduce is set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sppo_megatron.rollout.registry import engine_kind
from sppo_planner.arithmetic import Part, Term, term
from sppo_planner.communication import Pass, gradient_traffic, layer_traffic, push_traffic
from sppo_planner.job import Job
from sppo_planner.vllm_cache import cache_bytes, sequence_bytes


@dataclass(frozen=True)
class Times:
    """stages: seconds of an iteration by stage, in the loop's order. traffic: bytes of one optimizer step by kind."""

    stages: dict[str, Part]
    traffic: dict[str, Part]

    @property
    def total(self) -> float:
        return sum(part.value for part in self.stages.values())


def times(job: Job) -> Times:
    recomputes = job.config.model.recompute_granularity == "full"
    training = Pass(job.micro_batches, 1 + recomputes, backward=True)
    layers, gradients = layer_traffic(job, training), gradient_traffic(job)
    push = push_traffic(job)
    stages = {
        "rollout": Part("rollout", tuple(_rollout(job)), "decoding reads weights and keys from memory at every token"),
        "old log-probs": Part("old log-probs", tuple(_old_log_probs(job))),
        "training": Part("training", tuple(_training(job, training, layers, gradients))),
    }
    traffic = layers | gradients
    if push is not None:
        stages["push"] = Part("push", (_transfer(job, _widest(job), push, 1),), push.basis)
        traffic["push"] = push
    return Times(stages, traffic)


# ---------------------------------------------------------------------------------------------- forward and backward


def _old_log_probs(job: Job) -> list[Term]:
    forward = Pass(job.workload.micro_batches(job.sizes, job.workload.sequences), 1, backward=False)
    terms = _compute(job, forward, 1)
    return terms + [_transfer(job, kind, part, 1) for kind, part in layer_traffic(job, forward).items()]


def _training(job: Job, each: Pass, layers: dict[str, Part], gradients: dict[str, Part]) -> list[Term]:
    steps = job.workload.steps
    terms = _compute(job, each, steps)
    terms += [_transfer(job, kind, part, steps) for kind, part in layers.items()]
    exposed = [_transfer(job, kind, part, steps) for kind, part in gradients.items()]
    if job.config.parallelism.overlap_grad_reduce:
        hidden = sum(each.value for each in terms) * 0.5  # about the backward pass
        whole = sum(each.value for each in exposed)
        share = max(0.0, 1 - hidden / whole) if whole else 0.0
        exposed = [each.times(not_overlapped=share) for each in exposed]
    return terms + exposed


def _compute(job: Job, each: Pass, repeats: int) -> list[Term]:
    """FLOP of the slowest pipeline stage over its speed; a backward pass costs two forward ones."""
    sizes, passes = job.sizes, each.forwards + 2 * each.backward
    m = each.micro_batches
    runs: dict[str, float] = {"steps": repeats, "micro_batches": m, "passes": passes}
    if sizes.pp > 1:  # the pipeline's bubble: (pp − 1) / (vpp · m), Narayanan et al. 2021, section 2.2
        runs["with_bubble"] = 1 + (sizes.pp - 1) / (sizes.vpp * m)
    speed = job.assumptions.mfu
    peak = job.cluster.gpu.peak_flops
    of_layers = peak["fp8"] if job.fp8 else peak[job.config.precision.dtype]
    return [
        each_term.times(**runs).over(FLOP_a_second=rate, mfu=speed)
        for each_term, rate in (
            (_matrix_flops(job), of_layers),
            (_attention_flops(job), peak[job.config.precision.dtype]),
            (_head_flops(job), peak[job.config.precision.dtype]),
        )
    ]


def _matrix_flops(job: Job) -> Term:
    """Forward pass of one micro-batch on one GPU: a multiplication and an addition for each element."""
    elements = job.active_elements
    flops = term("matrix products", tokens=job.tokens.count, elements=elements, FLOP=2)
    return flops.over(tp=job.sizes.tp, pp=job.sizes.pp)


def _attention_flops(job: Job) -> Term:
    """Scores and values over the causal half of the sequence."""
    a = job.architecture
    mean = job.workload.prompt + job.workload.mean_response if job.workload.packed else job.workload.longest
    flops = term(
        "attention",
        tokens=job.tokens.count,
        mean_keys=mean / 2,
        elements=a.num_attention_heads * a.head_dim,
        layers=a.num_layers,
        FLOP=4,
    )
    return flops.over(tp=job.sizes.tp, pp=job.sizes.pp)


def _head_flops(job: Job) -> Term:
    return term(
        "LM head",
        response_tokens=job.response_tokens,
        rows=job.vocabulary_shard,
        hidden=job.architecture.hidden_size,
        FLOP=2,
    )


def _transfer(job: Job, kind: str, part: Part, repeats: int) -> Term:
    bandwidth = job.cluster.bandwidth(job.sizes.spans[kind])
    seconds = term(part.name, times=repeats, bytes=part.value)
    return seconds.over(bytes_a_second=bandwidth, efficiency=job.assumptions.bandwidth_efficiency)


def _widest(job: Job) -> str:
    """The kind of group that spreads a replica's weights furthest."""
    if job.sizes.pp > 1 or not engine_kind(job.config).in_ranks:
        return "pp"
    return max(("tp", "ep"), key=lambda kind: job.sizes.spans[kind])


# ---------------------------------------------------------------------------------------------- rollout


def _rollout(job: Job) -> list[Term]:
    """Engines decode side by side; a step reads the weights and the keys and values of all its sequences."""
    if not (job.trainer_samples or job.engine_beside):
        return []  # stored, or on GPUs that aren't counted here
    sizes, work, a = job.sizes, job.workload, job.architecture
    tp = sizes.tp if job.trainer_samples else job.config.rollout.vllm.tensor_parallel_size
    engines = sizes.dp if job.trainer_samples else job.cluster.gpus // tp
    each = math.ceil(work.sequences / engines)
    together = min(each, decoded_together(job))
    steps = max(work.response, math.ceil(each * work.mean_response / together))
    if job.trainer_samples:  # batches one after the other, each as long as its longest response
        steps = math.ceil(each / together) * work.response
    memory = {"bytes_a_second": job.cluster.gpu.memory_bandwidth, "efficiency": job.assumptions.bandwidth_efficiency}
    keys = 2 * a.num_query_groups * a.head_dim * a.num_layers
    context = work.prompt + work.mean_response / 2
    peak = {"FLOP_a_second": job.cluster.gpu.peak_flops[job.config.precision.dtype], "mfu": job.assumptions.mfu}
    active = job.active_elements + a.vocab_size * a.hidden_size
    prefill = term("prompts", sequences=each, tokens=work.prompt, elements=active, FLOP=2).over(tp=tp)
    return [
        term("weights read", steps=steps, parameters=job.table.total, bytes=job.itemsize).over(tp=tp, **memory),
        term(
            "keys and values read", steps=steps, sequences=together, tokens=context, elements=keys, bytes=job.itemsize
        ).over(tp=tp, **memory),
        term("products", steps=steps, sequences=together, elements=active, FLOP=2).over(tp=tp, **peak),
        prefill.over(**peak),
    ]


def decoded_together(job: Job) -> int:
    """Sequences that one engine decodes at a time: as configured, or as many as vLLM's cache holds."""
    rollout = job.config.rollout
    if job.trainer_samples:
        return rollout.batch_size
    return max(1, min(rollout.vllm.max_num_seqs, int(cache_bytes(job) // sequence_bytes(job))))
