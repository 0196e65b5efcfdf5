"""Human responses beside the prompts: SPIN's winners (arXiv 2401.01335)."""

from __future__ import annotations

from typing import Any

import numpy as np

from sppo_megatron.data.json_values import check_text, json_name
from sppo_megatron.data.length_filter import keep_short
from sppo_megatron.data.records import MISSING, column, column_error
from sppo_megatron.types import Prompt


def human_token_ids(record: dict[str, Any], key: str, tokenizer: Any) -> np.ndarray:
    """int32 [response_length]: the text's tokens and the tokenizer's end token, as a model would have sampled them.

    Nothing of a chat template is added: it is part of the prompt. Raises ValueError if the record has no text under the
    key, or the tokenizer no end token.
    """
    text = column(record, key)
    if text is MISSING:
        raise column_error(record, "no key", key, "data.response_key")
    if not isinstance(text, str):
        raise ValueError(f"{key!r} is a JSON {json_name(text)}, not text")
    if not text.strip():
        raise ValueError(f"empty response under {key!r}")
    check_text(text, repr(key))
    if tokenizer.eos_token_id is None:
        raise ValueError("a human response needs its end token, and the tokenizer has no eos_token")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return np.array([*ids, tokenizer.eos_token_id], dtype=np.int32)


def drop_long_responses(prompts: list[Prompt], max_response_length: int, path: str) -> list[Prompt]:
    """Prompts whose human response has at most max_response_length tokens; one warning counts the others.

    Raises ConfigError if none is left.
    """
    return keep_short(
        prompts,
        lambda prompt: 0 if prompt.human_token_ids is None else len(prompt.human_token_ids),
        max_response_length,
        "rollout.max_response_length",
        "human responses",
        path,
    )
