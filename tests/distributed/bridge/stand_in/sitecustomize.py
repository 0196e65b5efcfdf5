"""Lets megatron-bridge be imported without Transformer Engine and on Python 3.11.

Python runs this file at its start where its folder is on the path, which is so for the processes of this test alone.
The Bridge imports Transformer Engine and, in what is tested, calls nothing of it: it is handed empty classes of any
name. Whoever looked before, Megatron-Core above all, has found what is installed.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
import typing

import typing_extensions

NAME = "transformer_engine"
MACHINERY = ("importlib", "sppo_megatron.megatron_cpu.shim", __name__)  # what lies between an import and this finder


class Anything(type):
    """A class whose attributes are classes alike."""

    def __getattr__(cls, name: str) -> Anything:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name, (), {})


class EmptyModule(types.ModuleType):
    __version__ = "2.20.2"

    def __getattr__(self, name: str) -> Anything:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name, (), {})


class ForTheBridge(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != NAME or not importer().startswith("megatron.bridge"):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return EmptyModule(spec.name)

    def exec_module(self, module):
        pass


def importer() -> str:
    """The module whose import statement is being run."""
    frame = sys._getframe(1)
    while frame.f_globals["__name__"].startswith(MACHINERY):
        frame = frame.f_back
    return frame.f_globals["__name__"]


if not hasattr(typing, "override"):
    typing.override = typing_extensions.override  # Python 3.12's
sys.meta_path.append(ForTheBridge())
