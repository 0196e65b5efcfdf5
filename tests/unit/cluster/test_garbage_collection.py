"""What is imported is not visited by the collector, then or later; everything else is."""

from __future__ import annotations

import gc
import importlib
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from sppo_megatron.cluster.garbage_collection import garbage_collection_paused

MODULE = "many_objects"


class Node:
    """In a cycle with itself: only the collector can free it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / f"{MODULE}.py").write_text("objects = [[i] for i in range(100_000)]")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield MODULE
    sys.modules.pop(MODULE, None)
    gc.unfreeze()


def collections() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())


def test_new_modules_are_left_out_of_collections(module: str) -> None:
    frozen, before = gc.get_freeze_count(), collections()
    with garbage_collection_paused():
        objects = importlib.import_module(module).objects
    assert collections() == before
    assert gc.isenabled() and gc.get_freeze_count() >= frozen + len(objects)


def test_nothing_new_leaves_nothing_out(module: str) -> None:
    with garbage_collection_paused():
        importlib.import_module(module)
    node = weakref.ref(Node())
    with garbage_collection_paused():
        importlib.import_module(module)
    gc.collect()
    assert node() is None


def test_a_failed_import_leaves_the_collector_on() -> None:
    with pytest.raises(ImportError), garbage_collection_paused():
        importlib.import_module("no_such_module")
    assert gc.isenabled()
