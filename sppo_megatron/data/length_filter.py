"""Prompts that are left out for a length, and what is said about it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sppo_megatron.errors import ConfigError

T = TypeVar("T")
logger = logging.getLogger(__name__)


def keep_short(
    prompts: list[T], length_of: Callable[[T], int], limit: int, key: str, what: str, path: str | Path
) -> list[T]:
    """The prompts of at most `limit` tokens by length_of; one warning counts the others.

    key: the setting that is the limit. what: which prompts are dropped, such as "prompts". path: where they come from.
    Raises ConfigError if none is left.
    """
    lengths = [length_of(prompt) for prompt in prompts]
    kept = [prompt for prompt, length in zip(prompts, lengths, strict=True) if length <= limit]
    if prompts and not kept:
        raise ConfigError(
            f"{path}: all {len(prompts)} {what} are longer than {key}={limit} tokens "
            f"(the shortest has {min(lengths)}): raise it"
        )
    if len(kept) < len(prompts):
        logger.warning(
            "%s: dropped %d of %d %s longer than %s=%d tokens (the longest has %d); %d are left",
            path,
            len(prompts) - len(kept),
            len(prompts),
            what,
            key,
            limit,
            max(lengths),
            len(kept),
        )
    return kept
