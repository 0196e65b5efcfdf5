"""The tokens of given answers, as the policy itself would have sampled them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sppo_megatron.config import DataConfig
from sppo_megatron.data.chat_template import Message, end_of_turn


class AnswerEncoder:
    """Without data.apply_chat_template an answer is its text, and the end token stands behind it. With it an answer is
    what the template puts behind the prompt, up to its end of turn."""

    def __init__(self, tokenizer: Any, data: DataConfig) -> None:
        self._tokenizer = tokenizer
        self._variables = data.chat_template_kwargs
        template, eos = data.apply_chat_template, tokenizer.eos_token_id
        self._end = (end_of_turn(tokenizer, self._variables)[1] if template else None) or eos

    def of_text(self, answer: str) -> np.ndarray:
        """int32 [n], the end token behind it."""
        return np.array([*self.ids(answer), self.end], np.int32)

    def of_turn(
        self, before: str, messages: Sequence[Message], tools: list[dict[str, Any]] | None = None
    ) -> tuple[np.ndarray, list[int], str]:
        """The last turn of the conversation: its tokens with the end token (int32 [n]), what the template puts behind
        that, and the whole rendered.

        before: the rendered conversation up to where the turn begins. Raises ValueError if the template doesn't take
        the turn, or renders what is before it in another way.
        """
        try:
            given = {**self._variables, **({"tools": tools} if tools else {})}
            text = self._tokenizer.apply_chat_template(list(messages), tokenize=False, **given)
        except Exception as error:  # templates raise what they like
            raise ValueError(f"the chat template refuses the answer: {error}") from None
        if not text.startswith(before):
            raise ValueError("the chat template puts something else before the answer than before one that is sampled")
        ids = self.ids(text[len(before) :])
        ends = [place for place, token in enumerate(ids) if token == self.end]
        if not ends:
            return np.array([*ids, self.end], np.int32), [], text
        return np.array(ids[: ends[-1] + 1], np.int32), ids[ends[-1] + 1 :], text

    def ids(self, text: str) -> list[int]:
        """Without any special token that the text doesn't spell out."""
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    @property
    def end(self) -> int:
        """The token that ends an answer. Raises ValueError without one."""
        if self._end is None:
            raise ValueError("an answer needs its end token, and the tokenizer has no eos_token")
        return self._end
