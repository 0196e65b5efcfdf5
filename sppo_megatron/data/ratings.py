"""Answers that somebody found good or bad, one to a prompt: what thumbs up and thumbs down give."""

from __future__ import annotations

from typing import Any

from sppo_megatron.config.sources import Source
from sppo_megatron.data.answers import AnswerEncoder
from sppo_megatron.data.json_values import check_text, json_name
from sppo_megatron.data.length_filter import keep_short_groups
from sppo_megatron.data.prompts import PromptReader, read_all
from sppo_megatron.data.records import MISSING, Record, Split, column, column_error
from sppo_megatron.types import Group, Response

COMPLETION, LABEL = "completion", "label"


def load_ratings(source: Source, tokenizer: Any, max_response_length: int) -> list[Group]:
    """One group of one response for each record {prompt, completion, label}; its reward is 1 for true and 0 for false.

    completion: text, or one message of the assistant. See `AnswerEncoder` for its tokens; records that are too long are
    dropped as those of `load_preferences`. Raises ConfigError that names every bad record.
    """
    prompts = PromptReader(tokenizer, source.data, False, None, source.name, {COMPLETION, LABEL})
    answers = AnswerEncoder(tokenizer, source.data)

    def group(record: Record, index: int) -> Group:
        answer, label = _completion(record), column(record, LABEL)
        if label not in (0, 1):
            what = "is not there" if label is MISSING else f"is a JSON {json_name(label)}"
            raise ValueError(f"{LABEL!r} {what}: it must be true or false")
        prompt = prompts.prompt(record, index)
        if prompts.template is None:
            ids = answers.of_text(answer)
        else:
            messages = prompt.messages or [{"role": "user", "content": prompt.text}]
            turn = {"role": "assistant", "content": answer}
            ids = answers.of_turn(prompts.template(messages), [*messages, turn])[0]
        return Group(prompt, [Response(ids, answer, reward=float(label), correct=bool(label))])

    split = Split(source.split, source.default_split, "the split of the data source")
    groups = read_all(source.path, split, group, prompts)
    return keep_short_groups(groups, source, max_response_length, "responses")


def _completion(record: Record) -> str:
    stored = column(record, COMPLETION)
    if stored is MISSING:
        raise column_error(record, "no key", COMPLETION, "rated answers")
    if isinstance(stored, list) and len(stored) == 1 and isinstance(stored[0], dict):
        stored = stored[0].get("content") if stored[0].get("role") == "assistant" else stored
    if not isinstance(stored, str):
        raise ValueError(f"{COMPLETION!r} is a JSON {json_name(stored)}, not text or one message of the assistant")
    if not stored.strip():
        raise ValueError(f"{COMPLETION!r} is empty")
    check_text(stored, repr(COMPLETION))
    return stored
