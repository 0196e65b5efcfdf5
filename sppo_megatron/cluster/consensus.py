"""Ranks that go on together or end together: the same configuration, the same verdict, one rank's word for all.

Outside of a process group there is one rank, and nothing is communicated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf

from sppo_megatron.errors import ConfigError

T = TypeVar("T")


def of_all_ranks(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """What every rank of the group (None: of the job) gave, in the ranks' order, on each of them. Collective."""
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def of_first_rank(value: T, group: dist.ProcessGroup | None = None) -> T:
    """The first rank's value, on every rank of the group (None: of the job). Collective."""
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return value
    values: list[Any] = [value]
    dist.broadcast_object_list(values, group=group, group_src=0)
    return values[0]


def agreed(build: Callable[[], T]) -> T:
    """Runs `build`, which must not communicate, on every rank; a ConfigError of any rank ends all of them alike.

    Any other exception is an error of the program: it passes at once, with its traceback.
    """
    problem, result = None, None
    try:
        result = build()
    except ConfigError as error:
        problem = str(error)
    problems = of_all_ranks(problem)
    failed = [rank for rank, text in enumerate(problems) if text is not None]
    if not failed:
        return result  # type: ignore[return-value]
    texts = dict.fromkeys(problems[rank] for rank in failed)
    where = "" if len(failed) == len(problems) else f"rank {', '.join(map(str, failed))}: "
    raise ConfigError(where + "\n".join(map(str, texts)))


def decided_by_first_rank(decide: Callable[[], T]) -> T:
    """What rank 0 found, on every rank: for what ranks could see differently, such as a shared folder.

    A ConfigError of rank 0 is raised on all of them.
    """
    is_first = not dist.is_initialized() or dist.get_rank() == 0
    return of_first_rank(agreed(lambda: decide() if is_first else None))  # type: ignore[return-value]


def check_same_config(composed: DictConfig) -> None:
    """Raises ConfigError unless every rank has composed the same configuration."""
    digests = of_all_ranks(hashlib.sha256(OmegaConf.to_yaml(composed, resolve=True).encode()).hexdigest())
    differing = [rank for rank, other in enumerate(digests) if other != digests[0]]
    if differing:
        raise ConfigError(
            f"rank {', '.join(map(str, differing))} composed another configuration than rank 0: "
            "start every node with the same command and the same files"
        )
