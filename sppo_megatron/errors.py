"""Errors that end a run with one message and no traceback."""

from __future__ import annotations

from collections.abc import Iterable


class ConfigError(ValueError):
    """A configuration that can't run; the message says what to change."""


class TrainingError(RuntimeError):
    """A run that can't go on, the same on every rank; the message says why and how to continue."""


class LostRankError(RuntimeError):
    """This rank waited for another in vain; the message names the one at fault. speaks: whether it is for this rank
    to say so, one of each host."""

    def __init__(self, message: str, speaks: bool = True):
        super().__init__(message)
        self.speaks = speaks


def raise_problems(problems: Iterable[str]) -> None:
    """Raises ConfigError with every problem on a line of its own; does nothing if there is none."""
    found = list(problems)
    if found:
        raise ConfigError("\n".join(found))
