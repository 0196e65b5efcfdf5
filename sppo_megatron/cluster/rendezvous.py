"""A key-value store that belongs to this attempt of the job alone.

`torchrun --max-restarts` keeps one store over all attempts. What the dead processes of an earlier attempt wrote, their
addresses among it, is still there, and gloo connects to it. So the ranks of an attempt first agree on a prefix that no
earlier one can have used. The number of restarts won't do: every node counts its own.
"""

from __future__ import annotations

import os
import time
import uuid
from datetime import timedelta

import torch.distributed as dist

from sppo_megatron.errors import LostRankError


def has_launcher() -> bool:
    """Whether this process is a rank that a launcher started: torchrun, or a script that sets the same variables.

    A run of one process sets them, too, but for the port: a second run in that process has no launcher either.
    """
    alone = os.environ.get("WORLD_SIZE") == "1" and "MASTER_PORT" not in os.environ
    return "RANK" in os.environ and not alone


def attempt_store(store: dist.Store, rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """`store` under a prefix that rank 0 has chosen afresh and every rank has confirmed.

    A rank announces a token of its own, so an answer to that token can only come from a living rank 0. Raises
    LostRankError, naming the ranks that are missing, after `timeout`.
    """
    token = uuid.uuid4().hex
    if rank > 0:
        store.set(f"attempt/token/{rank}", token)
        try:
            prefix = store.get(f"attempt/answer/{token}").decode()
        except dist.DistError as error:
            raise LostRankError(f"rank {rank}: no answer from rank 0 within {timeout} ({error})") from error
        store.set(f"attempt/confirmed/{prefix}/{rank}", "yes")
        return dist.PrefixStore(prefix, store)
    missing = set(range(1, world_size))
    deadline = time.monotonic() + timeout.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"attempt/confirmed/{token}/{other}"]):
                missing.discard(other)
            elif store.check([f"attempt/token/{other}"]):  # perhaps one of an earlier attempt: it is asked again
                theirs = store.get(f"attempt/token/{other}").decode()
                store.set(f"attempt/answer/{theirs}", token)
        if time.monotonic() > deadline:
            raise LostRankError(f"ranks {sorted(missing)} did not join the job within {timeout}")
        time.sleep(0.01)
    return dist.PrefixStore(token, store)
