"""Human responses beside the prompts: SPIN's winners (arXiv 2401.01335)."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from sppo_megatron.types import Prompt

logger = logging.getLogger(__name__)


def human_token_ids(record: dict[str, Any], key: str, tokenizer: Any) -> np.ndarray:
    """int32 [response_length]: the text's tokens and the tokenizer's end token, as a model would have sampled them.

    Nothing of a chat template is added: it is part of the prompt. Raises ValueError where the record has no text under
    the key, or the tokenizer no end token.
    """
    if key not in record:
        raise ValueError(f"no key {key!r} (data.response_key); the keys are {sorted(record)}")
    text = record[key]
    if not isinstance(text, str):
        raise ValueError(f"{key!r} is a JSON {type(text).__name__}, not text")
    if not text.strip():
        raise ValueError(f"empty response under {key!r}")
    if tokenizer.eos_token_id is None:
        raise ValueError("a human response needs its end token, and the tokenizer has no eos_token")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return np.array([*ids, tokenizer.eos_token_id], dtype=np.int32)


def drop_long_responses(prompts: list[Prompt], max_response_length: int, path: str) -> list[Prompt]:
    """Prompts whose human response has at most max_response_length tokens; one warning counts the others.

    Raises ValueError where none is left.
    """
    lengths = [0 if prompt.human_token_ids is None else len(prompt.human_token_ids) for prompt in prompts]
    kept = [prompt for prompt, length in zip(prompts, lengths, strict=True) if length <= max_response_length]
    if prompts and not kept:
        raise ValueError(
            f"{path}: every human response has more than rollout.max_response_length={max_response_length} tokens "
            f"(the shortest has {min(lengths)}): raise it"
        )
    if len(kept) < len(prompts):
        logger.warning(
            "%s: dropped %d of %d prompts whose human response has more than rollout.max_response_length=%d tokens "
            "(the longest has %d)",
            path,
            len(prompts) - len(kept),
            len(prompts),
            max_response_length,
            max(lengths),
        )
    return kept
