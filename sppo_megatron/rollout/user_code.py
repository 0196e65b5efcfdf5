"""What code of others says on rank 0, on every rank: ranks that asked for themselves could hear different things."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from sppo_megatron.cluster.consensus import of_first_rank
from sppo_megatron.cluster.interrupt import Interrupted, interruptible
from sppo_megatron.errors import TrainingError

T = TypeVar("T")


def said_by_first_rank(who: str, ask: Callable[[], T]) -> T:
    """ask() of rank 0. Collective.

    Raises, the same on every rank, TrainingError ("<who> failed", and how), and Interrupted if the job is told to stop.
    """
    answer, failure, interrupted = None, None, False
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            with interruptible():
                answer = ask()
        except Interrupted:
            interrupted = True
        except Exception as error:
            failure = f"{who} failed: {type(error).__name__}: {error}"
    answer, failure, interrupted = of_first_rank((answer, failure, interrupted))
    if interrupted:
        raise Interrupted
    if failure is not None:
        raise TrainingError(failure)
    return answer  # type: ignore[return-value]
