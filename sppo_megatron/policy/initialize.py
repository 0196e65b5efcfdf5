"""Process groups, seeds and the device: what must stand before a model is built."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from sppo_megatron.cluster.rendezvous import attempt_store, has_launcher
from sppo_megatron.config import ParallelismConfig


def local_device() -> torch.device:
    """This rank's GPU, or the CPU if there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def initialize_distributed(timeout_minutes: int) -> None:
    """Joins the job's default process group: NCCL on GPUs, gloo on CPU. Without torchrun the world is one process."""
    if dist.is_initialized():
        return
    if not has_launcher():
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
        dist.init_process_group(_backend(), rank=0, world_size=1, store=dist.HashStore())
        return
    device = local_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    timeout = timedelta(minutes=timeout_minutes)
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
    store = attempt_store(store, rank, world_size, timeout)
    dist.init_process_group(_backend(), store=store, rank=rank, world_size=world_size, timeout=timeout)


@contextlib.contextmanager
def joined_job(timeout_minutes: int) -> Iterator[None]:
    """The default process group stands within, and ends with it unless it stood before."""
    owns_group = not dist.is_initialized()
    initialize_distributed(timeout_minutes)
    try:
        yield
    finally:
        if owns_group and dist.is_initialized():
            dist.destroy_process_group()


def _backend() -> str:
    return "nccl" if torch.cuda.is_available() else "gloo"


def initialize_model_parallel(parallelism: ParallelismConfig, seed: int) -> ProcessGroupCollection:
    """Builds Megatron's process groups and seeds its random states. The groups are what everything else is handed.

    Groups of an earlier call in this process are destroyed first.
    """
    destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallelism.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallelism.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallelism.virtual_pipeline_model_parallel_size,
        context_parallel_size=parallelism.context_parallel_size,
        expert_model_parallel_size=parallelism.expert_model_parallel_size,
        expert_tensor_parallel_size=parallelism.expert_tensor_parallel_size,
        distributed_timeout_minutes=parallelism.distributed_timeout_minutes,
    )
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
    return ProcessGroupCollection.use_mpu_process_groups()


def destroy_model_parallel() -> None:
    """Ends Megatron's process groups, so that another layout can be built in the same process.

    Megatron only forgets its groups. One that is never destroyed keeps its threads, and hundreds of gloo's event loops
    take the cores away.
    """
    if not parallel_state.model_parallel_is_initialized():
        return
    groups = [group for group in parallel_state._global_process_group_list or [] if group is not None]
    parallel_state.destroy_model_parallel()
    for group in groups:
        with contextlib.suppress(ValueError):  # a few are destroyed by Megatron itself
            dist.destroy_process_group(group)
