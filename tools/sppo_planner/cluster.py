"""The machines a run is planned for, and what is assumed of them if nothing was measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """memory_gib: GiB. peak_flops: dense FLOP/s by number format. memory_bandwidth, link_bandwidth: bytes/s.

    link_bandwidth: to the other GPUs of the node, in one direction.
    """

    memory_gib: float
    peak_flops: dict[str, float]
    memory_bandwidth: float
    link_bandwidth: float


def _gpu(gib: float, fp32: float, bf16: float, fp8: float, memory: float, link: float) -> Gpu:
    peak = {"fp32": fp32 * 1e12, "bf16": bf16 * 1e12, "fp16": bf16 * 1e12, "fp8": fp8 * 1e12}
    return Gpu(gib, peak, memory * 1e12, link * 1e9)


# NVIDIA's data sheets of the SXM modules: dense TFLOP/s, TB/s, half of NVLink's GB/s of both directions.
# The A100 has no FP8: its products run at the speed of bf16.
GPUS: dict[str, Gpu] = {
    "a100": _gpu(80, 19.5, 312, 312, 2.0, 300),
    "h100": _gpu(80, 67, 989, 1979, 3.35, 450),
    "h200": _gpu(140, 67, 989, 1979, 4.8, 450),
    "b200": _gpu(180, 75, 2250, 4500, 8.0, 900),
}


@dataclass(frozen=True)
class Cluster:
    """network_bandwidth: bytes/s from one GPU to other nodes, in one direction; 400 Gbit/s is one NDR port a GPU."""

    gpus: int
    gpus_per_node: int
    gpu: Gpu
    network_bandwidth: float = 50e9

    def bandwidth(self, span: int) -> float:
        """bytes/s within a group that spreads over `span` consecutive ranks."""
        return self.gpu.link_bandwidth if span <= self.gpus_per_node else self.network_bandwidth


def _assume(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class Assumptions:
    """What is neither configured nor known; every field is a flag of the command with this default."""

    mfu: float = _assume(0.45, "share of the peak FLOP/s that training reaches, communication and bubbles aside")
    bandwidth_efficiency: float = _assume(0.7, "share of the nominal bandwidths, of memory and of links")
    mean_length: float = _assume(0.5, "mean length of responses, as a share of the longest")
    prompt_length: int = _assume(1024, "tokens of the longest prompt if data.max_prompt_length is null")
    expert_imbalance: float = _assume(1.2, "tokens of the busiest expert-parallel rank over the mean")
    reserve_gib: float = _assume(6.0, "GiB a GPU for the CUDA context, NCCL, workspaces and fragmentation")
