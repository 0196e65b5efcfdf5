"""Megatron parameters back to Hugging Face tensors, streamed: whole tensors one at a time, never the whole model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from sppo_megatron.conversion.layouts import Layout
from sppo_megatron.conversion.mapping import canonical_name


@torch.no_grad()
def stream_hf_tensors(
    parameters: Mapping[str, Tensor],
    layouts: Mapping[str, Layout],
    *,
    tp_group: dist.ProcessGroup,
    pp_group: dist.ProcessGroup,
    device: torch.device,
) -> Iterator[tuple[str, Tensor]]:
    """Yields (Hugging Face name, whole tensor) in the model's order, the same on every rank.

    parameters: this rank's shards by global Megatron name. Every rank of both groups must run the iterator to its end:
    each tensor costs one all-gather over the tensor-parallel group of the stage that holds it and one broadcast over
    the pipeline. Tensors have the parameters' dtype; each is the caller's own.
    """
    local = {canonical_name(name): parameter for name, parameter in parameters.items()}
    shapes = {name: (tuple(parameter.shape), parameter.dtype) for name, parameter in local.items()}
    shapes_of_stages: list = [None] * pp_group.size()
    dist.all_gather_object(shapes_of_stages, shapes, group=pp_group)
    for name, layout in layouts.items():
        stage = next((i for i, held in enumerate(shapes_of_stages) if name in held), None)
        if stage is None:
            raise RuntimeError(f"no pipeline stage holds {name}")
        shape, dtype = shapes_of_stages[stage][name]
        shards = [torch.empty(shape, dtype=dtype, device=device) for _ in range(tp_group.size())]
        if pp_group.rank() == stage:
            dist.all_gather(shards, local[name].detach().contiguous(), group=tp_group)
        if pp_group.size() > 1:
            for shard in shards:
                dist.broadcast(shard, src=dist.get_global_rank(pp_group, stage), group=pp_group)
        yield from zip(layout.hf_names, layout.unshard(shards), strict=True)
