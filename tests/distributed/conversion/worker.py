"""Takes models through layouts in one set of processes.

    torchrun --nproc-per-node N worker.py folder

In each layout: Hugging Face weights into shards, and out again; the converted checkpoint into shards by Megatron-Core's
own loading, and out again; logits. The last rank writes folder/out/CASE/{direct,stored}.safetensors and logits.pt.
"""

from __future__ import annotations

import math
import sys
from itertools import groupby
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

from sppo_megatron.config import ModelConfig, ParallelismConfig, PrecisionConfig
from sppo_megatron.hf import export as export_module
from sppo_megatron.hf.export import ExportGroups, ExportPlan, stream_hf_tensors
from sppo_megatron.hf.hf_model import open_hf_model, open_weights
from sppo_megatron.hf.load import load_parameters
from sppo_megatron.hf.mapping import expert_index, parameter_layouts
from sppo_megatron.hf.save import as_published
from sppo_megatron.hf.tensor_layouts import Replicated
from sppo_megatron.policy.checkpoint.logits import load_weights, model_logits
from sppo_megatron.policy.initialize import (
    destroy_model_parallel,
    initialize_distributed,
    initialize_model_parallel,
)
from sppo_megatron.policy.model.build import build_chunks, named_parameters, transformer_config
from tests.distributed.conversion.cases import CASES, TP, Case
from tests.distributed.conversion.tokens import tokens

from megatron.core.process_groups_config import ProcessGroupCollection  # isort: skip  (the policy room comes first)

DIVISIBLE_BY = 4


def run(case: Case, folder: Path, sizes: ParallelismConfig, groups: ProcessGroupCollection) -> None:
    model = open_hf_model(str(folder / "hf" / case.model))
    architecture = model.architecture
    padded = architecture.padded_vocab_size(DIVISIBLE_BY, groups.tp.size())
    layouts = parameter_layouts(architecture, padded)
    stored_weights = folder / "megatron" / case.model

    def build(dtype: str):
        config = transformer_config(architecture, ModelConfig(), sizes, PrecisionConfig(dtype=dtype))
        chunks = build_chunks(architecture, config, padded, groups)
        forget(chunks)
        return config, chunks

    config, chunks = build("bf16" if "bf16" in case.model else "fp32")
    load_parameters(
        named_parameters(chunks),
        layouts,
        open_weights(model.folder, architecture),
        tp_rank=groups.tp.rank(),
        tp_size=groups.tp.size(),
        expert_tp=(groups.expt_tp.rank(), groups.expt_tp.size()),
    )
    direct = export(chunks, layouts, groups, model.hf_config)
    forget(chunks)
    load_weights(chunks, groups, stored_weights)
    stored = export(chunks, layouts, groups, model.hf_config)
    if "bf16" in case.model:  # logits are compared in fp32
        config, chunks = build("fp32")
        load_weights(chunks, groups, stored_weights)
    logits = model_logits(chunks, config, groups, architecture.vocab_size, tokens())
    if dist.get_rank() == dist.get_world_size() - 1:
        out = folder / "out" / case.name
        out.mkdir(parents=True)
        save_file(direct, out / "direct.safetensors")
        save_file(stored, out / "stored.safetensors")
        torch.save(logits, out / "logits.pt")


@torch.no_grad()
def forget(chunks: list[nn.Module]) -> None:
    """What isn't loaded afterwards would show."""
    for _, parameter in named_parameters(chunks):
        parameter.fill_(torch.nan)


def export(chunks: list[nn.Module], layouts, groups: ProcessGroupCollection, hf_config) -> dict[str, torch.Tensor]:
    parameters = dict(named_parameters(chunks))
    plan = ExportPlan(parameters, layouts, ExportGroups(groups.tp, groups.pp, groups.ep, groups.expt_tp))
    with patch.object(export_module, "dist", ReceivedBytes()) as received:
        tensors = as_published(stream_hf_tensors(parameters, plan, torch.device("cpu")), hf_config)
        found = {name: tensor.contiguous() for name, tensor in tensors}
    assert received.total == lacking_bytes(parameters, plan), f"received {received.total} bytes"
    return found


class ReceivedBytes:
    """torch.distributed, which counts what this rank receives."""

    def __init__(self) -> None:
        self.total = 0

    def broadcast(self, tensor: torch.Tensor, *, group, group_src: int, async_op: bool = False):
        self.total += tensor.nbytes * (group.rank() != group_src)
        return dist.broadcast(tensor, group=group, group_src=group_src, async_op=async_op)

    def all_gather_into_tensor(self, whole: torch.Tensor, own: torch.Tensor, *, group) -> None:
        self.total += whole.nbytes - own.nbytes
        dist.all_gather_into_tensor(whole, own, group=group)


def lacking_bytes(parameters: dict[str, torch.Tensor], plan: ExportPlan) -> int:
    """The bound: every shard of every parameter once, but for those that are this rank's own to send."""
    groups, total = plan.groups, 0
    for name, layout in plan.layouts.items():
        held, is_expert = plan.holders[name], expert_index(name) is not None
        shard = math.prod(held.shape) * held.dtype.itemsize
        shards = 1 if isinstance(layout, Replicated) else plan.group_of(name).size()
        sends = groups.pp.rank() == held.stage and (not is_expert or groups.ep.rank() == held.ep_rank)
        total += shard * (shards - sends)
    return total


def main() -> None:
    initialize_distributed(timeout_minutes=2)
    mine = [case for case in CASES if case.world_size == dist.get_world_size()]
    for _, cases in groupby(mine, key=lambda case: case.layout):
        of_layout = list(cases)
        parallelism = of_layout[0].parallelism
        sizes = ParallelismConfig(**parallelism, sequence_parallel=TP in parallelism)
        groups = initialize_model_parallel(sizes, seed=0)
        for case in of_layout:
            run(case, Path(sys.argv[1]), sizes, groups)
    destroy_model_parallel()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
