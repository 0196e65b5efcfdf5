"""Places of Megatron-Core's checkpointing and token dispatch that assume CUDA tensors, fixed for CPU.

Each patch says what goes wrong without it; `tests/distributed` fails when one is left out.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.tensor_parallel import mappings
from megatron.core.transformer.moe import moe_utils, token_dispatcher


def apply() -> None:
    """Installs every patch."""
    FileSystemWriterAsync.preload_tensors = staticmethod(_snapshot_tensors)
    moe_utils.maybe_move_tensor_to_cpu = token_dispatcher.maybe_move_tensor_to_cpu = _as_asked
    _uneven_shares()


def _as_asked(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """The original leaves a CPU tensor alone, even if numpy is asked for: the sizes of an all-to-all are."""
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


def _uneven_shares() -> None:
    """gloo gathers and scatters equal shares only; expert-tensor-parallel ranks bring different numbers of tokens."""
    gather, scatter = mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim

    def gather_along_first_dim(input_, group, output_split_sizes=None, use_global_buffer=False):
        if output_split_sizes is None or group.size() == 1:
            return gather(input_, group, output_split_sizes, use_global_buffer)
        padded = input_.new_zeros((max(output_split_sizes), *input_.shape[1:]))
        padded[: len(input_)] = input_
        shares = [torch.empty_like(padded) for _ in output_split_sizes]
        dist.all_gather(shares, padded, group=group)
        return torch.cat([share[:size] for share, size in zip(shares, output_split_sizes, strict=True)])

    def reduce_scatter_along_first_dim(input_, group, input_split_sizes=None, use_global_buffer=False):
        if input_split_sizes is None or group.size() == 1:
            return scatter(input_, group, input_split_sizes, use_global_buffer)
        total = input_.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total.split([int(size) for size in input_split_sizes])[group.rank()].clone()

    mappings._gather_along_first_dim = gather_along_first_dim
    mappings._reduce_scatter_along_first_dim = reduce_scatter_along_first_dim


def _snapshot_tensors(write_buckets: list, non_blocking: bool = True) -> list:
    """`.to("cpu")` of a CPU tensor is the tensor itself: an asynchronous save would write weights of a later step."""
    return [
        (file, key, (data, [(item, tensor.detach().clone()) for item, tensor in tensors]))
        for file, key, (data, tensors) in write_buckets
    ]
