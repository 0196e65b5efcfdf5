"""Helper processes that start light and never outlive the trainer. Light, as they import this."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import types
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any


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
    """Leads a session of its own, and takes all that it started along when it ends, however it ends."""

    def run(self) -> None:
        os.setsid()
        os.dup2(2, 1)  # whoever reads the trainer's standard output must not wait for what a helper left behind
        super().run()

    def terminate(self) -> None:
        if self.pid is not None:
            kill_tree(self.pid)

    def is_alive(self) -> bool:
        alive = super().is_alive()
        if not alive and self.pid is not None:
            kill_group(self.pid)
        return alive


class SpawnSessions(SpawnContext):
    """Like SpawnWithoutMain, for code that starts processes of its own: they end with the helper."""

    Process = _SessionLeader


def kill_group(leader: int) -> None:
    """SIGKILL to every process of a helper's group, also if the helper itself is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def kill_tree(leader: int) -> None:
    """As kill_group, and its descendants that left the group."""
    import psutil  # not at the top: a helper's start is light

    descendants = []
    with contextlib.suppress(psutil.Error):
        descendants = psutil.Process(leader).children(recursive=True)
    kill_group(leader)
    for process in descendants:
        with contextlib.suppress(psutil.Error):
            process.kill()


def die_with_parent() -> None:
    """Called in a helper: ends it when its parent is gone, also by SIGKILL; a session's leader with its descendants."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        if os.getsid(0) == os.getpid():
            kill_tree(os.getpid())
        os._exit(1)
