"""The ranks of a torchrun job find each other, or the missing ones are named."""

from __future__ import annotations

import os
import time
from datetime import timedelta

import torch
import torch.distributed as dist


def join_job(timeout_s: float) -> tuple[dist.ProcessGroup, torch.device]:
    """Joins the default group, NCCL on GPUs and gloo on CPU, and returns (it, this rank's device).

    Raises RuntimeError naming the ranks that don't come within timeout_s seconds.
    """
    timeout = timedelta(seconds=timeout_s)
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
    missing = missing_ranks(store, rank, world_size, timeout_s)
    if missing:
        raise RuntimeError(f"rank {', '.join(map(str, missing))} did not come within {timeout_s:g} s")
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    group = dist.group.WORLD
    assert group is not None
    return group, device


def missing_ranks(store: dist.Store, rank: int, world_size: int, timeout_s: float) -> list[int]:
    """The ranks that have not announced themselves in the store after timeout_s seconds. Each rank calls it."""
    store.set(f"doctor/{rank}", "here")
    deadline = time.monotonic() + timeout_s
    missing = list(range(world_size))
    while missing and time.monotonic() < deadline:
        missing = [other for other in missing if not store.check([f"doctor/{other}"])]
        time.sleep(0.01)
    return missing


def new_control_group(timeout_s: float) -> dist.ProcessGroup:
    """A gloo group of all ranks, beside the one that is tested: for reports and for `wait_for_all`."""
    return dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))


def wait_for_all(control: dist.ProcessGroup, timeout_s: float) -> None:
    """A barrier. Raises RuntimeError on the first rank naming those that are not there within timeout_s seconds."""
    dist.monitored_barrier(control, timedelta(seconds=timeout_s), wait_all_ranks=True)
