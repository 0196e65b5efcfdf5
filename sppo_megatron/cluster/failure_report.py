"""Who is at fault if ranks lose each other: they report in the job's store, and the one that doesn't is named.

Under torchrun the store outlives the ranks: the launcher of the first node keeps it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist

from sppo_megatron.errors import ConfigError, LostRankError, TrainingError

# Seconds for an answer. The first rank whose wait ends closes its connections, which ends the waits of the others.
# Below the 30 s after which torchrun kills what is left of a node.
ANSWER_S = 10.0
_POLL_S = 1.0
# How gloo's errors, bare RuntimeErrors, are known: by the place in its source, or by a text without one.
_GLOO = ("gloo/", "Application timeout caused pair closure")


@contextlib.contextmanager
def failures_reported() -> Iterator[None]:
    """Around what all ranks of the default group do together, which stands from before until after.

    Raises LostRankError if this rank waited for another in vain; it names the one at fault, and comes after at most
    2 × ANSWER_S seconds. Any other exception is this rank's own: the others are told, and it goes on with a note of
    rank and host. ConfigError and TrainingError are raised by every rank alike and pass.
    """
    rank, world_size, host = dist.get_rank(), dist.get_world_size(), socket.gethostname()
    store = dist.PrefixStore("failure_report", dist.distributed_c10d._get_default_store())
    if world_size > 1:
        _append(store, "hosts", rank, host)
    try:
        yield
    except (ConfigError, TrainingError):
        raise
    except Exception as error:
        if world_size == 1:
            raise
        waited = _waited_in_vain(error)
        answers = _answer(store, rank, world_size, None if waited else _first_line(error))
        if not waited:
            error.add_note(f"rank {rank} on {host}")
            raise
        text, speaks = _verdict(answers, rank, host)
        where = " ".join((f"rank {rank} on {host}", *getattr(error, "__notes__", ())))
        raise LostRankError(f"{where}: {text} ({_first_line(error).partition('. ')[0]})", speaks) from error


def _waited_in_vain(error: Exception) -> bool:
    from_gloo = isinstance(error, RuntimeError) and any(mark in str(error) for mark in _GLOO)
    return from_gloo or isinstance(error, dist.DistError)


class _Answers:
    """hosts, failures: by rank. A failure is the rank's own, None if it only waited. silent: no answer yet."""

    def __init__(self, store: dist.Store, world_size: int):
        self.hosts: dict[int, str] = dict(_read(store, "hosts"))
        self.failures: dict[int, str | None] = dict(_read(store, "failures"))
        self.silent = sorted(set(range(world_size)) - self.failures.keys())

    @property
    def complete(self) -> bool:
        return any(self.failures.values()) or not self.silent

    def name(self, rank: int) -> str:
        return f"rank {rank} on {self.hosts.get(rank, 'an unknown host')}"


def _answer(store: dist.Store, rank: int, world_size: int, failure: str | None) -> _Answers | None:
    """Answers, then waits until all have or one has failed by itself. None if the store can't be reached."""
    found: list[_Answers] = []

    def ask() -> None:
        deadline = time.monotonic() + ANSWER_S
        with contextlib.suppress(RuntimeError):
            _append(store, "failures", rank, failure)
            answers = _Answers(store, world_size)
            while not answers.complete and time.monotonic() < deadline:
                time.sleep(_POLL_S)
                answers = _Answers(store, world_size)
            found.append(answers)

    # in a thread: over a network that is gone a store blocks for a quarter of an hour
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2 * ANSWER_S)
    return found[0] if found else None


def _verdict(answers: _Answers | None, rank: int, host: str) -> tuple[str, bool]:
    """(what is said, whether this rank says it: the first of its host that answered)."""
    if answers is None:
        store = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        return f"no answer from the job's store at {store}: its node is down, or the network to it", True
    speaks = rank == min(other for other in answers.failures if answers.hosts.get(other) == host)
    failed = [f"{answers.name(other)} failed: {text}" for other, text in answers.failures.items() if text]
    if failed:
        return "; ".join(failed), speaks
    if answers.silent:
        return f"no answer from {', '.join(map(answers.name, answers.silent))}: dead, stuck, or cut off", speaks
    return "every rank answers, so connections between them broke: look at the network", speaks


def _append(store: dist.Store, key: str, rank: int, value: str | None) -> None:
    store.append(key, json.dumps([rank, value]) + "\n")  # type: ignore[attr-defined]  # torch's stubs lack it


def _read(store: dist.Store, key: str) -> Iterator[Any]:
    for line in store.get(key).decode().splitlines():
        yield json.loads(line)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
