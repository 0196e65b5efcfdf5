"""Helper processes that start light and never outlive the trainer. Standard library only, as they import this."""

from __future__ import annotations

import multiprocessing
import os
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


def die_with_parent() -> None:
    """Called in a helper: ends it when its parent is gone, also by SIGKILL."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
