"""One ConfigError for all that is wrong."""

from __future__ import annotations

from collections.abc import Iterable

from sppo_megatron.errors import ConfigError


def raise_problems(problems: Iterable[str]) -> None:
    """Raises ConfigError with every problem on a line of its own; does nothing without one."""
    found = list(problems)
    if found:
        raise ConfigError("\n".join(found))
