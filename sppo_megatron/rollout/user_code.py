"""What code of others says on rank 0, on every rank: ranks that asked for themselves could hear different things."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from sppo_megatron.cluster.consensus import of_first_rank
from sppo_megatron.errors import TrainingError

T = TypeVar("T")


def said_by_first_rank(who: str, ask: Callable[[], T]) -> T:
    """ask() of rank 0. Collective. Raises TrainingError, the same on every rank: "<who> failed", and how."""
    answer, failure = None, None
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            answer = ask()
        except Exception as error:
            failure = f"{who} failed: {type(error).__name__}: {error}"
    answer, failure = of_first_rank((answer, failure))
    if failure is not None:
        raise TrainingError(failure)
    return answer  # type: ignore[return-value]
