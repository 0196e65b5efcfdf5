"""Whether a configuration fits its cluster, why not, and which keys would change that."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from sppo_megatron.config import Config, ParallelismConfig
from sppo_planner.cluster import GIB
from sppo_planner.job import Job
from sppo_planner.memory import memory
from sppo_planner.search import find_problems, search
from sppo_planner.vllm_cache import find_vllm_problems

Changes = dict[str, Any]  # dotted key -> value

_NO_PARALLELISM: Changes = {
    f"parallelism.{name}": value
    for name, value in dataclasses.asdict(ParallelismConfig()).items()
    if name.endswith("_size") or name == "sequence_parallel"
}


@dataclass(frozen=True)
class Verdict:
    """problems: none if it fits. suggestions: changes that were tried and make it fit, as Hydra overrides."""

    problems: list[str]
    suggestions: list[str]


def judge(job: Job) -> Verdict:
    """For a job with a valid layout."""
    problems = list(_find_problems(job))
    return Verdict(problems, _suggestions(job) if problems else [])


def _find_problems(job: Job) -> Iterator[str]:
    yield from _memory_problems(job)
    yield from find_vllm_problems(job)
    yield from _replica_problems(job)


def _memory_problems(job: Job) -> Iterator[str]:
    needed, limit = memory(job), job.cluster.gpu.memory_gib
    if needed.total <= limit * GIB:
        return
    parts = [part for part in (*needed.resident, *needed.moments[needed.peak]) if part.value]
    listed = ", ".join(f"{part.name} {part.value / GIB:.1f}" for part in parts)
    yield (
        f"a GPU of pipeline stage {needed.stage} needs {needed.total / GIB:.1f} GiB and has {limit:g}; "
        f"at the peak, {needed.peak}: {listed}"
    )


def _replica_problems(job: Job) -> Iterator[str]:
    replicas, minibatch = job.sizes.dp, job.workload.minibatch
    if replicas > minibatch:
        yield (
            f"{replicas} data-parallel replicas share mini-batches of {minibatch} sequences, and "
            f"{replicas - minibatch} have none: raise train.minibatch_size or the model-parallel sizes"
        )


# ---------------------------------------------------------------------------------------------- what would help


def _suggestions(job: Job) -> list[str]:
    """Single changes that make the job fit; if none does, the first sum of them that does, or another layout."""
    single = [changes for changes in _changes(job) if _fits(job, changes)]
    if single:
        return [_overrides(changes) for changes in single]
    together: Changes = {}
    for changes in _changes(job):
        if _changed(job, {**together, **changes}) is None:
            continue
        together |= changes
        if _fits(job, together):
            return [_overrides(together)]
    return list(_other_layouts(job))


def _other_layouts(job: Job) -> Iterator[str]:
    """The best layout on as many GPUs, or on the fewest of doubled numbers that one fits on."""
    for factor in (1, 2, 4, 8, 16):
        cluster = replace(job.cluster, gpus=factor * job.cluster.gpus)
        for changes in ({}, *({"rollout.vllm.tensor_parallel_size": size} for size in (2, 4, 8))):
            larger = _changed(replace(job, cluster=cluster), {**_NO_PARALLELISM, **changes})
            if larger is None or any(find_vllm_problems(larger)):
                continue
            best = search(larger)[0]
            if best.fits:
                layout = _layout_changes(best.job.config)
                yield f"{_overrides({**layout, **changes})} on {cluster.gpus} GPUs"
                return
            break


def _changes(job: Job) -> Iterator[Changes]:
    """What is worth a try, the cheapest first."""
    c, sizes, longest = job.config, job.sizes, job.workload.longest
    p = c.parallelism
    if not c.optimizer.use_distributed_optimizer and sizes.dp > 1:
        yield {"optimizer.use_distributed_optimizer": True}
    if sizes.tp > 1 and not p.sequence_parallel:
        yield {"parallelism.sequence_parallel": True}
    if c.train.max_tokens_per_micro_batch is None and c.train.micro_batch_size > 1:
        yield {"train.micro_batch_size": 1}
    if (c.train.max_tokens_per_micro_batch or 0) > longest:
        yield {"train.max_tokens_per_micro_batch": longest}
    if job.trainer_samples and c.rollout.batch_size > 16:
        yield {"rollout.batch_size": 16}
    if job.engine_beside:
        yield from _vllm_changes(c)
    if c.model.recompute_granularity != "full":
        yield {"model.recompute_granularity": "full"}
    if p.expert_model_parallel_size > 1 or job.architecture.mixture is not None:
        yield {"parallelism.expert_model_parallel_size": 2 * p.expert_model_parallel_size}
    if sizes.tp < job.cluster.gpus_per_node:
        yield {"parallelism.tensor_model_parallel_size": 2 * sizes.tp, "parallelism.sequence_parallel": True}
    if longest >= 8192:
        yield {"parallelism.context_parallel_size": 2 * sizes.cp}
    yield {"parallelism.pipeline_model_parallel_size": 2 * sizes.pp}


def _vllm_changes(c: Config) -> Iterator[Changes]:
    share = c.rollout.vllm.gpu_memory_utilization
    for other in (0.7, 0.6, 0.5, 0.4, 0.3):
        if other != share:
            yield {"rollout.vllm.gpu_memory_utilization": other}
    yield {"rollout.vllm.tensor_parallel_size": 2 * c.rollout.vllm.tensor_parallel_size}


def _fits(job: Job, changes: Changes) -> bool:
    changed = _changed(job, changes)
    return changed is not None and not any(_find_problems(changed))


def _changed(job: Job, changes: Changes) -> Job | None:
    """The job with these keys; None if its layout would be invalid."""
    config = copy.deepcopy(job.config)
    for key, value in changes.items():
        *groups, name = key.split(".")
        target: Any = config
        for group in groups:
            target = getattr(target, group)
        setattr(target, name, value)
    size = config.rollout.vllm.tensor_parallel_size
    if find_problems(job.architecture, config.parallelism, job.cluster.gpus) or job.cluster.gpus % size:
        return None
    return replace(job, config=config)


def _overrides(changes: Changes) -> str:
    return " ".join(
        f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in changes.items()
    )


def _layout_changes(config: Config) -> Changes:
    """The parallel sizes that aren't the defaults, and the recomputation."""
    values = {key: getattr(config.parallelism, key.partition(".")[2]) for key in _NO_PARALLELISM}
    values = {key: value for key, value in values.items() if value != _NO_PARALLELISM[key]}
    granularity = config.model.recompute_granularity
    return {**values, **({"model.recompute_granularity": granularity} if granularity else {})}
