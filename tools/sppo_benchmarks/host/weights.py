"""Rows of the weights: a million parameters in the place of a million tokens."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from sppo_benchmarks.host.row import Row, Work
from sppo_benchmarks.host.workload import Workload
from sppo_megatron.engines.fingerprint import WeightCounter
from sppo_megatron.hf.export import ExportGroups, ExportPlan, stream_hf_tensors
from sppo_megatron.hf.tensor_layouts import RowParallel


def fingerprint(work: Workload, folder: Path) -> Work:
    """Of as many bf16 parameters as the workload has tokens, in tensors of at most 4M."""
    tensors = torch.randn(work.tokens, generator=torch.Generator().manual_seed(0)).bfloat16().split(1 << 22)

    def call() -> None:
        counter = WeightCounter()
        for number, tensor in enumerate(tensors):
            counter.add(str(number), tensor)
        counter.fingerprint()

    return call


def exported(work: Workload, folder: Path) -> Work:
    """A tensor of 4 KiB for every thousand tokens, split over all ranks."""
    world = dist.distributed_c10d._get_default_group()
    alone = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    layouts = {f"w{number}": RowParallel(f"w{number}", (32, 32)) for number in range(work.tokens // 1000)}
    parameters = {name: torch.zeros(32, 32 // dist.get_world_size()) for name in layouts}
    plan = ExportPlan(parameters, layouts, ExportGroups(world, alone))
    return lambda: sum(1 for _ in stream_hf_tensors(parameters, plan, torch.device("cpu")))


ROWS = (
    Row("weights fingerprinted (M parameters)", fingerprint, 0.00025),
    Row("weights exported (1,000 tensors)", exported, 0.05),
)
