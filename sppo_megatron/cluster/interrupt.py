"""Told to stop: SIGTERM or SIGUSR1 at any rank, known to every rank in seconds, ends whatever may be waited for.

Who takes a node back gives it half a minute. What takes long and changes no weights, such as sampling and scoring, is
therefore given up: by Interrupted, which every function that runs on many ranks raises on all of them alike.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
BYTES_BETWEEN_QUESTIONS = 1 << 28  # of a stream of weights
_POLL_S = 2.0
_TOLD = "told"


class Interrupted(BaseException):
    """The job was told to stop. No Exception: code that goes on after what fails doesn't go on after this."""


class StopSignals:
    """Notes the signals of this process from construction to `close`, and those of other ranks; one at a time."""

    def __init__(self) -> None:
        global _installed
        self.told = False
        self.may_interrupt = False
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        is_spread = dist.is_initialized() and dist.get_world_size() > 1
        self._others = _OtherRanks() if is_spread else None
        _installed = self

    def close(self) -> None:
        """Gives the signals back to whoever had them."""
        global _installed
        _installed = None
        if self._others is not None:
            self._others.close()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.told = True
        if self.may_interrupt:
            self.may_interrupt = False  # once
            raise Interrupted


_installed: StopSignals | None = None


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Around what this rank does by itself, without communicating, and may leave at any point.

    Raises Interrupted there as soon as the job is told to stop, or at once if it was. The ranks must agree on it
    afterwards: see `raise_if_any`. In other threads, and where nobody looks for signals, it does nothing.
    """
    signals = _installed
    if signals is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    signals.may_interrupt = True
    try:
        if signals.told:
            raise Interrupted
        yield
    finally:
        signals.may_interrupt = False


@contextlib.contextmanager
def undivided() -> Iterator[None]:
    """Within `interruptible`, around what must not be left half done: Interrupted is raised behind it."""
    signals = _installed
    if signals is None or not signals.may_interrupt:
        yield
        return
    signals.may_interrupt = False
    yield
    if signals.told:
        raise Interrupted
    signals.may_interrupt = True


def was_told() -> bool:
    """Whether this rank knows that the job was told to stop. Ranks know it at different times."""
    return _installed is not None and _installed.told


def any_was_told(device: torch.device, *groups: dist.ProcessGroup | None) -> bool:
    """Whether a rank of the block that `groups` span, one dimension each, was told: the same on all of it. Collective.

    None: the world.
    """
    flag = torch.tensor(int(was_told()), dtype=torch.int32, device=device)
    for group in groups:
        if dist.get_world_size(group) > 1:
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=group)
    return bool(flag.item())


class RepeatedQuestion:
    """`any_was_told` for loops of work on a device, such as micro-batches.

    On a GPU the answer of a question is read when the next one is put: the host never waits for work that it has just
    given, and is one question ahead of the device at most. The first answer is then no.
    """

    def __init__(self, device: torch.device, *groups: dist.ProcessGroup | None) -> None:
        self._device, self._groups = device, groups
        self._asked: tuple[Tensor, torch.cuda.Event] | None = None

    def ask(self) -> bool:
        """The same on all ranks of the block. Collective."""
        if self._device.type != "cuda":
            return any_was_told(self._device, *self._groups)
        before, self._asked = self._asked, self._put()
        if before is None:
            return False
        answer, has_arrived = before
        has_arrived.synchronize()
        return bool(answer.item())

    def _put(self) -> tuple[Tensor, torch.cuda.Event]:
        """The answer in pinned memory, and when it will be there."""
        flag = torch.full((), int(was_told()), dtype=torch.int32, device=self._device)
        for group in self._groups:
            if dist.get_world_size(group) > 1:
                dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=group)
        answer = torch.empty((), dtype=torch.int32, pin_memory=True)
        answer.copy_(flag, non_blocking=True)
        has_arrived = torch.cuda.Event()
        has_arrived.record()
        return answer, has_arrived


def raise_if_any_was_told(device: torch.device) -> None:
    """Raises Interrupted, on every rank of the job, if one was told to stop. Collective."""
    if any_was_told(device, None):
        raise Interrupted


def until_told(weights: Iterator[tuple[str, Tensor]], device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """The same pairs, which every rank of the job takes together.

    Raises Interrupted, on all of them between the same two, if the job is told to stop.
    """
    taken = BYTES_BETWEEN_QUESTIONS
    for name, tensor in weights:
        if taken >= BYTES_BETWEEN_QUESTIONS:
            raise_if_any_was_told(device)
            taken = 0
        taken += tensor.nbytes
        yield name, tensor


class _OtherRanks:
    """A thread that passes a signal on to the other ranks by the job's store, whatever the main thread waits for.

    Signals may come to one node alone, whose ranks then wait for those that know nothing of it.
    """

    def __init__(self) -> None:
        # A connection of its own: one question at a time goes over each, and a cut one doesn't answer.
        store = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]  # torch's stubs lack it
        self._store = dist.PrefixStore("interrupt", store)
        self._main = threading.main_thread().ident
        self._received, self._sent = socket.socketpair()
        self._sent.setblocking(False)
        # A signal's number is there at once; Python's handler waits until the main thread is back from a wait in C.
        self._previous = signal.set_wakeup_fd(self._sent.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> None:
        signal.set_wakeup_fd(self._previous)
        self._sent.close()
        self._thread.join(_POLL_S)  # over a network that is gone the store blocks for a quarter of an hour
        if not self._thread.is_alive():
            self._received.close()

    def _watch(self) -> None:
        with contextlib.suppress(RuntimeError, OSError):  # the store is gone, and the job with it
            while True:
                if select.select([self._received], [], [], _POLL_S)[0]:
                    numbers = self._received.recv(64)
                    if not numbers:
                        return
                    if set(SIGNALS) & set(numbers):
                        self._store.set(_TOLD, "")
                        return
                elif self._store.check([_TOLD]):
                    assert self._main is not None
                    signal.pthread_kill(self._main, SIGNALS[0])
                    return
