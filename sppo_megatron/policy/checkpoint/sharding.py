"""How a training checkpoint holds the state of the distributed optimizer.

By parameter, it loads in every layout (Megatron's fully_reshardable): each data-parallel rank gathers the whole state
of its model-parallel rank to write it. As it lies in the buffers (dp_reshardable), each rank writes its own part:
several times faster and smaller on the host, for ranks that cut the model in the same way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.dist_checkpointing.strategies.torch import (
    TorchDistLoadShardedStrategy,
    TorchDistSaveShardedStrategy,
)
from megatron.core.process_groups_config import ProcessGroupCollection

from sppo_megatron.cluster.consensus import of_all_ranks
from sppo_megatron.errors import ConfigError
from sppo_megatron.policy.model.build import named_parameters
from sppo_megatron.policy.policy import Policy

BY_PARAMETER, AS_IN_BUFFERS = "fully_reshardable", "dp_reshardable"
_SHARDING, _BUFFERS, _LAYOUT = "optimizer_sharding", "optimizer_buffers", "layout"  # in the description


def content_metadata(sharding: str) -> dict[str, Any]:
    """What Megatron is told, and keeps in the checkpoint."""
    return {
        "distrib_optim_sharding_type": sharding,
        "distrib_optim_fully_reshardable_mem_efficient": False,
        "singleton_local_shards": False,
        "chained_optim_avoid_prefix": True,
    }


def save_strategy(sharding: str, groups: ProcessGroupCollection) -> Any:
    strategy = TorchDistSaveShardedStrategy("torch_dist", 1)
    return strategy if sharding == BY_PARAMETER else FullyParallelSaveStrategyWrapper(strategy, groups.dp_cp)


def load_strategy(sharding: str, groups: ProcessGroupCollection) -> Any:
    strategy = TorchDistLoadShardedStrategy()
    return strategy if sharding == BY_PARAMETER else FullyParallelLoadStrategyWrapper(strategy, groups.dp_cp)


def choose_sharding(policy: Policy, reshardable: bool) -> str:
    """As it lies in the buffers if that may be and can be. Collective."""
    if reshardable or not policy.uses_distributed_optimizer:
        return BY_PARAMETER
    return AS_IN_BUFFERS if _can_take_buffers(policy) else BY_PARAMETER


def sharding_description(policy: Policy, sharding: str) -> dict[str, str]:
    """What a checkpoint says of its layout, if it needs it to be loaded. Collective."""
    if sharding == BY_PARAMETER:
        return {}
    return {_SHARDING: sharding, _BUFFERS: _buffers_digest(policy), _LAYOUT: _layout_of(policy)}


def sharding_of(path: Path, saved: Mapping[str, Any], policy: Policy) -> str:
    """saved: the description of the checkpoint at the path. Collective.

    Raises ConfigError if it holds the optimizer as it lay in buffers that aren't like the policy's.
    """
    sharding = saved.get(_SHARDING, BY_PARAMETER)
    if sharding != BY_PARAMETER and not (saved[_BUFFERS] == _buffers_digest(policy) and _can_take_buffers(policy)):
        raise ConfigError(
            f"the checkpoint {path} was saved for its own layout, {saved[_LAYOUT]}, and this run has "
            f"{_layout_of(policy)}: continue it there, or have it made one for every layout, where it was saved: "
            f"torchrun --nproc-per-node N -m sppo_megatron.cli.reshard {path} --output FOLDER"
        )
    return sharding


def _can_take_buffers(policy: Policy) -> bool:
    """Whether every rank has something of each buffer, without which Megatron can't write them."""
    buckets = (
        bucket
        for optimizer in policy.optimizer.chained_optimizers
        for ranges in optimizer.gbuf_ranges
        for of_type in ranges.values()
        for bucket in of_type
    )
    return all(of_all_ranks(all(bucket["param_map"] for bucket in buckets)))


def _buffers_digest(policy: Policy) -> str:
    """What the buffers of all model-parallel ranks hold, and in which order: equal if one's state fits the other's.

    The number of data-parallel ranks isn't part of it.
    """
    of_ranks = sorted(set(of_all_ranks("\n".join(_places(policy)))))
    return hashlib.sha256("\n\n".join(of_ranks).encode()).hexdigest()


def _places(policy: Policy) -> Iterator[str]:
    groups = policy.groups
    yield f"tp {groups.tp.rank()} pp {groups.pp.rank()} ep {groups.ep.rank()} etp {groups.expt_tp.rank()}"
    for number, chunk in enumerate(policy.chunks):
        names = {parameter: name for name, parameter in named_parameters([chunk])}
        for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers):
            for parameter, (start, _, bucket) in sorted(buffer.param_index_map.items(), key=lambda item: item[1]):
                place = start - buffer.buckets[bucket].offset
                yield f"{number} {names[parameter]} {list(parameter.shape)} {bucket} {place}"


def _layout_of(policy: Policy) -> str:
    """For messages."""
    groups = policy.groups
    sizes = {"TP": groups.tp, "PP": groups.pp, "EP": groups.ep, "expert TP": groups.expt_tp}
    return " ".join(f"{name} {group.size()}" for name, group in sizes.items()) + f" on {dist.get_world_size()} ranks"
