"""Every layout of a model on a cluster that is valid, with what it costs, best first."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from sppo_megatron.config import ParallelismConfig
from sppo_megatron.config.model import Granularity
from sppo_megatron.config.parallelism import check_layout, check_processes
from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.architecture import Architecture
from sppo_planner.cluster import GIB
from sppo_planner.job import Job
from sppo_planner.memory import Memory, memory
from sppo_planner.timing import Times, times
from sppo_planner.vllm_cache import find_vllm_problems

GRANULARITIES: tuple[Granularity | None, ...] = (None, "selective", "full")
_MOST_STAGES = 16
_SHORTEST_CONTEXT = 4096  # tokens of a rank below which context parallelism isn't tried


@dataclass(frozen=True)
class Plan:
    """One layout. activations: bytes by recompute_granularity, the one chosen and the others."""

    job: Job
    memory: Memory
    times: Times
    activations: dict[str, float]

    @property
    def fits(self) -> bool:
        """Also into vLLM's share of the GPUs, if vLLM generates."""
        enough = self.memory.total <= self.job.cluster.gpu.memory_gib * GIB
        return enough and not list(find_vllm_problems(self.job))


def search(job: Job) -> list[Plan]:
    """Plans of all layouts with the least recomputation that fits: those that fit by time, then the others by memory.

    job: its parallel sizes are replaced.
    """
    plans = [plan(_with_layout(job, layout)) for layout in layouts(job)]
    fitting = sorted((each for each in plans if each.fits), key=lambda each: each.times.total)
    return fitting + sorted((each for each in plans if not each.fits), key=lambda each: each.memory.total)


def plan(job: Job, granularities: tuple[Granularity | None, ...] = GRANULARITIES) -> Plan:
    """The plan of the job's layout, with the first of these recompute_granularities that fits, or the last."""
    found: dict[Granularity | None, tuple[Job, Memory]] = {}
    for granularity in GRANULARITIES:
        variant = _with_granularity(job, granularity)
        found[granularity] = variant, memory(variant)
    limit = job.cluster.gpu.memory_gib * GIB
    chosen = next((each for each in granularities if found[each][1].total <= limit), granularities[-1])
    activations = {
        str(each or "none"): kept.part("activations") + kept.part("recomputed layers")
        for each, (_, kept) in found.items()
    }
    return Plan(*found[chosen], times(found[chosen][0]), activations)


def layouts(job: Job) -> Iterator[ParallelismConfig]:
    """Valid layouts with at least one sequence of a mini-batch for each replica; tensor parallelism within a node."""
    a, gpus = job.architecture, job.cluster.gpus
    experts = [(1, None)] if a.mixture is None else product(_powers(min(gpus, a.mixture.num_experts)), (None, 1))
    sizes = product(
        _powers(min(gpus, job.cluster.gpus_per_node)),
        range(1, min(_MOST_STAGES, a.num_layers) + 1),
        (None, 2, 4),
        _powers(max(1, job.workload.longest // _SHORTEST_CONTEXT)),
        experts,
    )
    for tp, pp, vpp, cp, (ep, etp) in sizes:
        if gpus % (tp * pp * cp) or gpus // (tp * pp * cp) > job.workload.minibatch or etp == tp:
            continue
        layout = replace(
            job.config.parallelism,
            tensor_model_parallel_size=tp,
            pipeline_model_parallel_size=pp,
            virtual_pipeline_model_parallel_size=vpp,
            context_parallel_size=cp,
            expert_model_parallel_size=ep,
            expert_tensor_parallel_size=etp,
            sequence_parallel=tp > 1,
        )
        if not find_problems(a, layout, gpus):
            yield layout


def find_problems(architecture: Architecture, layout: ParallelismConfig, gpus: int) -> list[str]:
    """Why the model can't be cut so over so many processes; nothing if it can."""
    problems: list[str] = []
    for check in (
        lambda: check_processes(layout, gpus),
        lambda: check_layout(layout, **architecture.layout_sizes()),
    ):
        try:
            check()
        except ConfigError as error:
            problems += str(error).splitlines()
    return problems


def _powers(most: int) -> list[int]:
    return [2**exponent for exponent in range(most.bit_length())]


def _with_layout(job: Job, layout: ParallelismConfig) -> Job:
    config = copy.copy(job.config)
    config.parallelism = layout
    return replace(job, config=config)


def _with_granularity(job: Job, granularity: Granularity | None) -> Job:
    config = copy.copy(job.config)
    config.model = replace(config.model, recompute_granularity=granularity)
    return replace(job, config=config)
