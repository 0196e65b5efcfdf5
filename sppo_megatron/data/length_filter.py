"""Prompts that are left out for a length, and what is said about it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sppo_megatron.config.sources import Source
from sppo_megatron.errors import ConfigError
from sppo_megatron.types import Group

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


def keep_short_groups(groups: list[Group], source: Source, max_response_length: int, what: str) -> list[Group]:
    """Groups of a source without those whose prompt or longest answer, a human's too, is too long; see `keep_short`."""
    if source.data.max_prompt_length is not None:
        limit, key = source.data.max_prompt_length, "data.max_prompt_length"
        groups = keep_short(groups, lambda group: len(group.prompt.token_ids), limit, key, "prompts", source.path)
    return keep_short(groups, _longest, max_response_length, "rollout.max_response_length", what, source.path)


def _longest(group: Group) -> int:
    human = group.prompt.human_token_ids
    return max(*(len(response.token_ids) for response in group.responses), 0 if human is None else len(human))
