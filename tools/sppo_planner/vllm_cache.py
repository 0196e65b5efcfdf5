"""What vLLM's share of the GPUs holds beside the weights: the key-value cache of one engine."""

from __future__ import annotations

from collections.abc import Iterator

from sppo_planner.cluster import GIB
from sppo_planner.job import Job


def sequence_bytes(job: Job) -> int:
    """Keys and values of the longest sequence, over an engine's tensor-parallel ranks.

    Of multi-latent attention the latent vector and the key's rotated part, whole on each rank. Layers with a window
    are counted as others: the cache is laid out for the longest.
    """
    a = job.architecture
    if a.latent is not None:
        ranks = job.config.rollout.vllm.tensor_parallel_size
        of_token = (a.latent.kv_rank + a.latent.rope_dim) * a.num_layers * ranks
        return of_token * job.itemsize * job.workload.longest
    return 2 * a.num_query_groups * a.head_dim * a.num_layers * job.itemsize * job.workload.longest


def cache_bytes(job: Job) -> float:
    """Of one engine over its tensor-parallel ranks; negative if not even the weights fit."""
    vllm = job.config.rollout.vllm
    share = vllm.gpu_memory_utilization * job.cluster.gpu.memory_gib * GIB * vllm.tensor_parallel_size
    return share - job.table.total * job.itemsize


def find_vllm_problems(job: Job) -> Iterator[str]:
    """Nothing if another engine generates."""
    vllm = job.config.rollout.vllm
    if job.engine_beside and cache_bytes(job) < sequence_bytes(job):
        weights = job.table.total * job.itemsize
        share, gpus = cache_bytes(job) + weights, vllm.tensor_parallel_size
        yield (
            f"rollout.vllm.gpu_memory_utilization={vllm.gpu_memory_utilization:g} of {gpus} GPU{'s' * (gpus > 1)} is "
            f"{share / GIB:.1f} GiB for an engine; the weights take {weights / GIB:.1f} and the longest sequence of "
            f"{job.workload.longest} tokens {sequence_bytes(job) / GIB:.1f}: raise it or "
            "rollout.vllm.tensor_parallel_size"
        )
