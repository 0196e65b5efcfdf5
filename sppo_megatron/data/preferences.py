"""Preference data as it lies on the hub: a prompt with a chosen and a rejected answer, as text or as messages."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import takewhile
from typing import Any

import numpy as np

from sppo_megatron.config.sources import Source
from sppo_megatron.data.answers import AnswerEncoder
from sppo_megatron.data.json_values import check_text, json_name
from sppo_megatron.data.length_filter import keep_short_groups
from sppo_megatron.data.prompts import PromptReader, read_all
from sppo_megatron.data.records import MISSING, Record, Split, column, column_error
from sppo_megatron.types import Group, Response

CHOSEN, REJECTED = "chosen", "rejected"
_TURN = "\n\nAssistant:"  # what an answer stands behind in texts that hold the whole conversation, as HH's do


def load_preferences(
    source: Source, tokenizer: Any, max_response_length: int, chosen_is_human: bool = False
) -> list[Group]:
    """One group [chosen, rejected] for each record, with rewards 1 and 0 and P(chosen beats rejected) = 1.

    With data.score_keys rewards are the scores and P the sigmoid of their difference; with data.probability_key P and
    1 − P are the rewards. chosen_is_human: the group is [rejected], and the chosen answer `Prompt.human_token_ids`.

    A record is {prompt, chosen, rejected} with texts; or chosen and rejected are conversations as messages, whose
    common beginning is the prompt and whose last turn is the answer; or they are the answer's message alone, behind
    `prompt`; or texts of whole conversations without a prompt, which differ behind their last "\\n\\nAssistant:".

    Without data.apply_chat_template the prompt and each answer are encoded apart, and the end token stands behind each
    answer. With it an answer is what the template puts behind the prompt, up to its end of turn.
    Pairs that are too long (data.max_prompt_length, rollout.max_response_length) are dropped, with a warning.
    Raises ConfigError that names every bad record: a column that is missing, an empty answer, two that are the same.
    """
    reader = _PairReader(tokenizer, source, chosen_is_human)
    split = Split(source.split, source.default_split, "the split of the data source")
    groups = read_all(source.path, split, reader.group, reader.prompts)
    return keep_short_groups(groups, source, max_response_length, "pairs")


class _PairReader:
    def __init__(self, tokenizer: Any, source: Source, chosen_is_human: bool) -> None:
        self._chosen_is_human = chosen_is_human
        self.prompts = PromptReader(tokenizer, source.data, False, None, source.name, {CHOSEN, REJECTED})
        self._answers = AnswerEncoder(tokenizer, source.data)
        self._data = source.data

    def group(self, record: Record, index: int) -> Group:
        """Raises ValueError, or NotText, for what can't be read."""
        stored, answers = split_pair(record, self._data.prompt_key)
        if self.prompts.template is None and not isinstance(column(record, CHOSEN), str):
            raise ValueError(f"{CHOSEN!r} holds messages; set data.apply_chat_template=true")
        prompt = self.prompts.prompt({**record, self._data.prompt_key: stored}, index)
        ids = [self._answer_ids(stored, answer) for answer in answers]
        *rewards, p = self._judged(record)
        responses = [Response(i, text, reward=r) for i, text, r in zip(ids, answers, rewards, strict=True)]
        if self._chosen_is_human:
            return Group(replace(prompt, human_token_ids=ids[0]), responses[1:])
        return Group(prompt, responses, np.array([[0.5, p], [1.0 - p, 0.5]]))

    def _judged(self, record: Record) -> tuple[float, float, float]:
        """The rewards of both, and P(chosen beats rejected)."""
        if self._data.score_keys:
            chosen, rejected = (self._data.score_scale * number_of(record, key) for key in self._data.score_keys)
            return chosen, rejected, 1 / (1 + math.exp(min(rejected - chosen, 700.0)))
        if self._data.probability_key is not None:
            p = number_of(record, self._data.probability_key)
            if not 0 <= p <= 1:
                raise ValueError(f"{self._data.probability_key!r} is {p}, no probability in [0, 1]")
            return p, 1 - p, p
        return 1.0, 0.0, 1.0

    def _answer_ids(self, stored: object, answer: str) -> np.ndarray:
        """int32 [n], the end token behind it."""
        if self.prompts.template is None:
            return self._answers.of_text(answer)
        messages = stored if isinstance(stored, list) else [{"role": "user", "content": stored}]
        turn = {"role": "assistant", "content": answer}
        return self._answers.of_turn(self.prompts.template(messages), [*messages, turn])[0]


def number_of(record: Record, key: str) -> float:
    """The finite number in a column. Raises ValueError, naming it, for anything else."""
    value = column(record, key)
    if value is MISSING:
        raise column_error(record, "no key", key, "preference pairs")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{key!r} is a JSON {json_name(value)}, not a finite number")
    return float(value)


def split_pair(record: Record, prompt_key: str) -> tuple[Any, list[str]]:
    """(the prompt, text or messages; the chosen and the rejected answer as text). Raises ValueError."""
    given = {key: column(record, key) for key in (CHOSEN, REJECTED)}
    for key, value in given.items():
        if value is MISSING:
            raise column_error(record, "no key", key, "preference pairs")
        if not isinstance(value, (str, list)):
            raise ValueError(f"{key!r} is a JSON {json_name(value)}, not text or messages")
    chosen, rejected = given.values()
    if type(chosen) is not type(rejected):
        raise ValueError(f"{CHOSEN!r} and {REJECTED!r} are text and messages: give both alike")
    prompt = column(record, prompt_key)
    if chosen == rejected:
        raise ValueError(f"{CHOSEN!r} and {REJECTED!r} are the same")
    if isinstance(chosen, str):
        prompt, answers = _of_texts(None if prompt is MISSING else prompt, chosen, rejected, prompt_key)
    else:
        shared = 0
        while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
            shared += 1
        answers = [_last_turn(key, turns[shared:]) for key, turns in given.items()]
        prompt = chosen[:shared] or prompt
        if prompt is MISSING or prompt is None:
            raise column_error(record, "no key", prompt_key, "data.prompt_key")
    for key, answer in zip(given, answers, strict=True):
        if not answer.strip():
            raise ValueError(f"the answer of {key!r} is empty")
        check_text(answer, repr(key))
    return prompt, answers


def _of_texts(prompt: Any, chosen: str, rejected: str, prompt_key: str) -> tuple[Any, list[str]]:
    if prompt is not None:
        return prompt, [chosen, rejected]
    alike = (a == b for a, b in zip(chosen, rejected, strict=False))
    shared = chosen[: sum(1 for _ in takewhile(bool, alike))]
    end = shared.rfind(_TURN)
    if end < 0:
        raise ValueError(
            f"no key {prompt_key!r} (data.prompt_key), and {CHOSEN!r} and {REJECTED!r} have no common beginning that "
            f"ends with {_TURN!r}"
        )
    end += len(_TURN)
    return chosen[:end], [chosen[end:], rejected[end:]]


def _last_turn(key: str, turns: list[Any]) -> str:
    """The text of the one turn that the conversation has of its own."""
    if len(turns) != 1 or not isinstance(turns[0], dict) or turns[0].get("role") != "assistant":
        raise ValueError(f"{key!r} must end with one turn of the assistant, and differ in nothing else")
    if not isinstance(turns[0].get("content"), str):
        raise ValueError(f"{key!r}: the assistant's turn has no text")
    return turns[0]["content"]
