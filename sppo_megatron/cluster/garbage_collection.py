"""Imports that Python's garbage collector doesn't look through. Standard library only."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Around the imports of a command: a million objects, all of which live as long as the process.

    Each full collection would visit every one of them, while they are made and ever after: a third of the CPU time of a
    short run, and pauses in a long one. So none runs within, and later ones leave out what is there at the end. If
    everything is imported already, as in a second run of one process, nothing is left out.
    """
    known, collects = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > known:
            gc.freeze()
        if collects:
            gc.enable()
