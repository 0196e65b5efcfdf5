"""Latency and bandwidth of each pair of ranks, and the speed of each rank. The process group is an argument."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

ALL_PAIRS_UP_TO = 16  # ranks; above it each rank is paired with those at distances 1, 2, 4, ...


@dataclass(frozen=True)
class Link:
    """One pair of ranks. latency: seconds one way of one number. bandwidth: bytes per second one way."""

    latency: float
    bandwidth: float


Pair = tuple[int, int]  # the lower rank first


def partners(rank: int, size: int) -> list[int | None]:
    """Whom a rank meets in each round, None for nobody. The pairs of a round are disjoint, and none meets twice."""
    masks = range(1, 1 << (size - 1).bit_length())
    chosen = masks if size <= ALL_PAIRS_UP_TO else [mask for mask in masks if mask & (mask - 1) == 0]
    return [partner if (partner := rank ^ mask) < size else None for mask in chosen]


def measure_links(group: dist.ProcessGroup, device: torch.device, wait_for_all: Callable[[], None]) -> dict[Pair, Link]:
    """This rank's links. Collective over the group; wait_for_all is a barrier, so that pairs begin together."""
    rank, found = group.rank(), {}
    small = torch.zeros(1, device=device)
    large = torch.zeros((64 if device.type == "cuda" else 2) * 2**18, device=device)  # 64 or 2 MiB
    for partner in partners(rank, group.size()):
        wait_for_all()
        if partner is None:
            continue
        _round_trips(small, partner, group, 2)  # the first ones connect
        latency = _round_trips(small, partner, group, 50) / 2
        seconds = _round_trips(large, partner, group, 10) / 2
        found[min(rank, partner), max(rank, partner)] = Link(latency, large.nbytes / seconds)
    return found


def _round_trips(tensor: torch.Tensor, partner: int, group: dist.ProcessGroup, count: int) -> float:
    """Seconds of one, the median."""
    first, second = (dist.send, dist.recv) if group.rank() < partner else (dist.recv, dist.send)
    peer = {dist.send: "group_dst", dist.recv: "group_src"}
    seconds = []
    for _ in range(count):
        _synchronize(tensor.device)
        started = time.perf_counter()
        for call in (first, second):
            call(tensor, group=group, **{peer[call]: partner})
        _synchronize(tensor.device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def measure_compute(device: torch.device, seconds: float = 0.3) -> float:
    """FLOP/s of matrix products on this rank, over `seconds` of them: bf16 on a GPU, fp32 on a CPU."""
    size, dtype = (4096, torch.bfloat16) if device.type == "cuda" else (256, torch.float32)
    a = torch.ones(size, size, dtype=dtype, device=device)
    a @ a
    _synchronize(device)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        a @ a
        _synchronize(device)
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - started)


def measure_all_reduce(group: dist.ProcessGroup, device: torch.device) -> float:
    """Bytes per second of an all-reduce, as size / time: 256 MiB on GPUs, 8 MiB on CPU. Collective."""
    tensor = torch.zeros((256 if device.type == "cuda" else 8) * 2**18, device=device)
    dist.all_reduce(tensor, group=group)
    _synchronize(device)
    started = time.perf_counter()
    for _ in range(3):
        dist.all_reduce(tensor, group=group)
    _synchronize(device)
    return 3 * tensor.nbytes / (time.perf_counter() - started)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
