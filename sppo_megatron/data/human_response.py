"""Human responses beside the prompts: SPIN's winners (arXiv 2401.01335)."""

from __future__ import annotations

from typing import Any

import numpy as np

from sppo_megatron.data.length_filter import keep_short
from sppo_megatron.types import Prompt


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
    return keep_short(
        prompts,
        lambda prompt: 0 if prompt.human_token_ids is None else len(prompt.human_token_ids),
        max_response_length,
        "rollout.max_response_length",
        "human responses",
        path,
    )
