"""Errors that end a run with one message and no traceback."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration that can't run; the message says what to change."""


class TrainingError(RuntimeError):
    """A run that can't go on, the same on every rank; the message says why and how to continue."""
