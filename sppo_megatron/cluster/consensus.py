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


def agreed(build: Callable[[], T]) -> T:
    """Runs `build`, which must not communicate, on every rank; a ValueError of any rank ends all of them alike.

    So do an ImportError and a file that is missing, or there against expectation. Raises ConfigError.
    """
    problem, result = None, None
    try:
        result = build()
    except (ValueError, ImportError, FileNotFoundError, FileExistsError) as error:
        problem = str(error)
    problems = _of_all_ranks(problem)
    failed = [rank for rank, text in enumerate(problems) if text is not None]
    if not failed:
        return result  # type: ignore[return-value]
    texts = dict.fromkeys(problems[rank] for rank in failed)
    where = "" if len(failed) == len(problems) else f"rank {', '.join(map(str, failed))}: "
    raise ConfigError(where + "\n".join(texts))


def check_same_config(composed: DictConfig) -> None:
    """Every rank must have composed the same configuration."""
    digests = _of_all_ranks(hashlib.sha256(OmegaConf.to_yaml(composed, resolve=True).encode()).hexdigest())
    differing = [rank for rank, other in enumerate(digests) if other != digests[0]]
    if differing:
        raise ConfigError(
            f"rank {', '.join(map(str, differing))} composed another configuration than rank 0: "
            "start every node with the same command and the same files"
        )


def of_first_rank(value: T) -> T:
    """Rank 0's value, on every rank."""
    return _of_all_ranks(value)[0]


def _of_all_ranks(value: Any) -> list[Any]:
    if not dist.is_initialized():
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
