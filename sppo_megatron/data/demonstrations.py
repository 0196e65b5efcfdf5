"""Answers that somebody gave, to learn from: a prompt with its response, or conversations of any number of turns."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from sppo_megatron.config.sources import Source
from sppo_megatron.data import conversation
from sppo_megatron.data.answers import AnswerEncoder
from sppo_megatron.data.chat_template import Message
from sppo_megatron.data.formats import tools_of
from sppo_megatron.data.json_values import check_text, json_name
from sppo_megatron.data.length_filter import keep_short_groups
from sppo_megatron.data.prompts import PromptReader, read_all
from sppo_megatron.data.records import MISSING, Record, Split, column, column_error
from sppo_megatron.types import Group, Response

MESSAGES = "messages"


def load_demonstrations(source: Source, tokenizer: Any, max_response_length: int) -> list[Group]:
    """One group of one response for each record.

    A record holds `messages`, whose turns of the assistant are learned: the prompt is all before the first one, the
    response all from there on, and `Response.loss_mask` is True for the tokens of the assistant's turns with their end
    tokens. What follows the last one is left out; `tools` are given to the chat template. Or it holds a prompt and, in
    data.response_key, the response's text. See `AnswerEncoder` for their tokens.

    Demonstrations that are too long (data.max_prompt_length, rollout.max_response_length) are dropped, with a warning.
    Raises ConfigError that names every bad record: no turn of the assistant, an empty one, a column that is missing.
    """
    reader = _Reader(tokenizer, source)
    split = Split(source.split, source.default_split, "the split of the data source")
    groups = read_all(source.path, split, reader.group, reader.prompts)
    return keep_short_groups(groups, source, max_response_length, "responses")


class _Reader:
    def __init__(self, tokenizer: Any, source: Source) -> None:
        own_columns = {source.data.response_key or MESSAGES}
        self.prompts = PromptReader(
            tokenizer,
            replace(source.data, response_key=None, format=None if source.data.response_key else "openai"),
            False,
            None,
            source.name,
            own_columns,
        )
        self._answers = AnswerEncoder(tokenizer, source.data)
        self._data = source.data

    def group(self, record: Record, index: int) -> Group:
        """Raises ValueError, or NotText, for what can't be read."""
        if self._data.response_key is not None:
            return self._of_text(record, index, self._data.response_key)
        messages = column(record, MESSAGES)
        if messages is MISSING:
            raise column_error(record, "no key", MESSAGES, "or prompts with data.response_key")
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise ValueError(f"{MESSAGES!r} is a JSON {json_name(messages)}, not a list of messages")
        if self.prompts.template is None:
            raise ValueError(f"{MESSAGES!r} is a list of messages; set data.apply_chat_template=true")
        turns = [place for place, message in enumerate(messages) if message.get("role") == "assistant"]
        if not turns:
            raise ValueError(f"{MESSAGES!r} has no turn of the assistant to learn from")
        prompt = self.prompts.prompt({**record, MESSAGES: messages[: turns[0]]}, index)
        return Group(prompt, [self._of_turns(messages, turns, tools_of(record, "tools"))])

    def _of_text(self, record: Record, index: int, key: str) -> Group:
        answer = column(record, key)
        if answer is MISSING:
            raise column_error(record, "no key", key, "data.response_key")
        if not isinstance(answer, str) or not answer.strip():
            raise ValueError(f"{key!r} is no text, or an empty one")
        check_text(answer, repr(key))
        prompt = self.prompts.prompt(record, index)
        if self.prompts.template is None:
            return Group(prompt, [Response(self._answers.of_text(answer), answer, reward=0.0)])
        before = prompt.messages or [{"role": "user", "content": prompt.text}]
        turns = [*before, {"role": "assistant", "content": answer}]
        return Group(prompt, [self._of_turns(turns, [len(before)], None)])

    def _of_turns(self, messages: list[Message], turns: list[int], tools: list[dict[str, Any]] | None) -> Response:
        """turns: the places of the assistant's."""
        assert self.prompts.template is not None
        template = partial(self.prompts.template, tools=tools)
        ids: list[np.ndarray] = []
        is_own: list[bool] = []
        rendered = ""
        behind: list[int] = []
        for turn in turns:
            where = f"{MESSAGES!r}, message {turn + 1}"
            content = messages[turn].get("content")
            if not messages[turn].get("tool_calls") and not (isinstance(content, str) and content.strip()):
                raise ValueError(f"{where}: the assistant's turn has no text")
            check_text(content or "", where)
            before = conversation.render(messages[:turn], template, MESSAGES)
            if not before.startswith(rendered):
                raise ValueError(f"{where}: the chat template renders earlier turns in another way once others follow")
            if rendered:
                between = [*behind, *self._answers.ids(before[len(rendered) :])]
                ids.append(np.array(between, np.int32))
                is_own.append(False)
            answer, behind, rendered = self._answers.of_turn(before, messages[: turn + 1], tools)
            ids.append(answer)
            is_own.append(True)
        mask = np.repeat(is_own, [len(part) for part in ids])
        text = messages[turns[0]]["content"] if len(turns) == 1 else None
        return Response(np.concatenate(ids), text, reward=0.0, loss_mask=None if mask.all() else mask)
