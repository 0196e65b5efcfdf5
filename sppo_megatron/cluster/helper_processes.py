"""Helper processes that start light and never outlive the trainer. Light, as they import this."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
import uuid
from multiprocessing import reduction
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

MARK = "SPPO_HELPER"  # in the environment of a session's leader, and so of all that it starts
KILL_S = 5.0  # what the kernel holds longer (a dead network disk) is left to it


class _ProcessWithoutMain(SpawnProcess):
    """Spawned without running the parent's main module again.

    That would import the whole trainer in every helper, start an unguarded script anew, and fail in a notebook or
    under `python -`. Helpers find what they call by its module's name and need nothing of the main module.
    """

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            return SpawnProcess._Popen(process_obj)
        finally:
            sys.modules["__main__"] = main


class SpawnWithoutMain(SpawnContext):
    """A multiprocessing context like `spawn`, without the parent's main module."""

    Process = _ProcessWithoutMain


class _SessionLeader(_ProcessWithoutMain):
    """Leads a session of its own, and takes all that it started along when it ends, however it ends.

    What it prints comes to the trainer's standard error through a pipe of its own: whoever reads the trainer's output
    must not wait for what a helper left behind.
    """

    mark = ""
    is_swept = False
    output: Any = None

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        process_obj.mark = os.environ[MARK] = uuid.uuid4().hex
        readable, writable = os.pipe()
        process_obj.output = _PassedOn(writable)
        try:
            popen = _ProcessWithoutMain._Popen(process_obj)
        finally:
            del os.environ[MARK]
            process_obj.output = None
            os.close(writable)
        threading.Thread(target=_show, args=(readable,), daemon=True).start()
        return popen

    def run(self) -> None:
        os.setsid()
        os.dup2(self.output, 2)
        os.dup2(self.output, 1)
        super().run()

    def terminate(self) -> None:
        if self.pid is not None:
            kill_tree(self.pid, self.mark)
            self.kill()  # one that starts leads no group yet; it would look for semaphores that are gone

    def is_alive(self) -> bool:
        alive = super().is_alive()
        if not alive and self.pid is not None and not self.is_swept:
            self.is_swept = True
            kill_tree(self.pid, self.mark)
        return alive


class _PassedOn:
    """A file descriptor that comes to a spawned process as its number there."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __reduce__(self) -> Any:
        return _passed_on, (reduction.DupFd(self._descriptor),)


def _passed_on(duplicate: Any) -> int:
    descriptor: int = duplicate.detach()
    return descriptor


def _show(readable: int) -> None:
    with open(readable, "rb", buffering=0) as output, contextlib.suppress(OSError):
        while part := output.read(1 << 16):
            os.write(2, part)


class SpawnSessions(SpawnContext):
    """Like SpawnWithoutMain, for code that starts processes of its own: they end with the helper."""

    Process = _SessionLeader


def kill_tree(leader: int, mark: str) -> None:
    """SIGKILL to all that a session's leader has started, and to itself, also if it is gone already.

    They are its group, its descendants in other groups, and whatever has its mark in its environment: those whose
    parents ended before them. None of them but the leader runs any more when this returns: a signal takes effect
    later than it is sent, and what is killed may just have started another process.
    """
    import psutil  # not at the top: a helper's start is light

    killed: set[Any] = set()
    with contextlib.suppress(psutil.Error):
        killed.update(psutil.Process(leader).children(recursive=True))
    if leader != os.getpid():
        _kill_group(leader)
    end = time.monotonic() + KILL_S
    while time.monotonic() < end:
        killed.update(process for process in psutil.process_iter() if process.pid != leader and _has(process, mark))
        running = [process for process in killed if _runs(process)]
        for process in running:
            with contextlib.suppress(psutil.Error):
                process.kill()
        if not running:
            break
        time.sleep(0.002)
    if leader == os.getpid():
        _kill_group(leader)


def _has(process: Any, mark: str) -> bool:
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        return bool(process.environ().get(MARK) == mark)
    return False


def _runs(process: Any) -> bool:
    import psutil

    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD))
    return False


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def die_with_parent() -> None:
    """Called in a helper: ends it when its parent is gone, also by SIGKILL; a session's leader with its descendants."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def serve_parent() -> None:
    """Called in a helper that the trainer needs to save: it ends with its parent, and with no signal before.

    Whoever stops a job tells all of its processes: torchrun sends SIGTERM to each rank's process group.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    die_with_parent()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        if os.getsid(0) == os.getpid():
            kill_tree(os.getpid(), os.environ[MARK])
        os._exit(1)
