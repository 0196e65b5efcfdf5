"""The text of prompts and responses, decoded where only token ids are there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sppo_megatron.types import Group, Prompt, Response

Decode = Callable[[np.ndarray], str]  # token ids [length] int32 -> text without special tokens


def text_of(item: Prompt | Response, decode: Decode | None) -> str:
    """Raises ValueError where text is missing and there is no `decode`."""
    if item.text is not None:
        return item.text
    if decode is None:
        raise ValueError("cannot score a prompt or response without text: no tokenizer to decode its tokens with")
    return decode(item.token_ids)


def texts_of(group: Group, decode: Decode | None) -> tuple[str, list[str]]:
    """The prompt's text and those of its responses. Raises as `text_of`."""
    return text_of(group.prompt, decode), [text_of(response, decode) for response in group.responses]
