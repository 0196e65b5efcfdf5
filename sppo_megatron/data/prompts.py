"""Records become prompts."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from decimal import Decimal
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from sppo_megatron.config import DataConfig
from sppo_megatron.data import conversation
from sppo_megatron.data.chat_template import Template, chat_template
from sppo_megatron.data.formats import Columns, columns_of
from sppo_megatron.data.human_response import human_token_ids
from sppo_megatron.data.json_values import NotText, check_text, json_name, to_plain
from sppo_megatron.data.length_filter import keep_short
from sppo_megatron.data.records import MISSING, Record, Split, column_error, read_records
from sppo_megatron.errors import ConfigError
from sppo_megatron.types import Prompt

logger = logging.getLogger(__name__)

MAX_PROBLEMS_SHOWN = 20
TRAIN_SPLIT = Split(None, "train", "data.train_split")
T = TypeVar("T")
_NOTHING: Mapping[str, Any] = MappingProxyType({})


def load_prompts(
    path: str | Path,
    tokenizer: Any,
    config: DataConfig,
    require_answer: bool = False,
    split: Split = TRAIN_SPLIT,
    accept: Callable[[Prompt], Prompt] | None = None,
    source: str | None = None,
) -> list[Prompt]:
    """Reads one prompt per record of what `read_records` takes; `Prompt.index` is its 0-based place among the records.

    tokenizer: a Hugging Face tokenizer. How a prompt becomes tokens:

    - apply_chat_template=True: text is wrapped as one user message, a list of messages is rendered as
      `conversation.render` says. The template alone decides about special tokens.
    - apply_chat_template=False: text only. It is what the model continues, so the tokenizer's begin token is put in
      front if the tokenizer does that by default, and nothing is ever added behind (some tokenizers add an end token,
      which no model continues).

    Keys may name a field of a column, as reward_model.ground_truth does; config.format knows its columns itself.
    `Prompt.text` is the text as the file has it, or the rendered conversation if the file has messages, which are
    `Prompt.messages`. `Prompt.extra` holds the columns that no key names, as `to_plain` makes them; those that have no
    JSON are left out, with one warning.
    Answers that are JSON numbers become text. An absent or null answer is None, unless require_answer.
    source: the name that every prompt gets.
    accept: what the reward makes of a prompt; raises ValueError if it can't use it, which makes its line a bad one.
    Prompts with half a surrogate pair, which have no tokens, and prompts of more than config.max_prompt_length tokens
    are dropped, with one warning that names or counts them.

    Raises ConfigError, naming every bad line or row at once: not JSON, a missing key, an empty prompt, a wrong type; or
    if no prompt is left; and what `read_records` raises.
    """
    reader = PromptReader(tokenizer, config, require_answer, accept, source)
    prompts = read_all(path, split, reader.prompt, reader)
    if config.max_prompt_length is None:
        return prompts
    limit, key = config.max_prompt_length, "data.max_prompt_length"
    return keep_short(prompts, lambda prompt: len(prompt.token_ids), limit, key, "prompts", path)


def read_all(path: str | Path, split: Split, read: Callable[[Record, int], T], reader: PromptReader) -> list[T]:
    """read(record, its place from 0) of every record; what can't be read is told as `load_prompts` says."""
    found: list[T] = []
    problems: list[str] = []
    dropped: list[str] = []
    for index, (place, record) in enumerate(read_records(path, split)):
        try:
            if isinstance(record, ValueError):
                raise record
            found.append(read(record, index))
        except NotText as error:
            dropped.append(f"{place}: {error}")
        except ValueError as error:
            problems.append(f"{place}: {error}")
    if problems:
        kind = problems[0].partition(" ")[0]  # line or row
        raise ConfigError(f"{path} has {len(problems)} bad {kind}s:" + _listed(problems))
    if dropped:
        said = f"{path}: dropped {len(dropped)} of {len(found) + len(dropped)} prompts that have no tokens:"
        if not found:
            raise ConfigError(said + _listed(dropped))
        logger.warning("%s%s", said, _listed(dropped))
    for name, why in reader.left_out.items():
        logger.warning("%s: the column %r is left out of the prompts' extra: %s", path, name, why)
    return found


def _listed(problems: list[str]) -> str:
    shown = problems[:MAX_PROBLEMS_SHOWN]
    if len(problems) > len(shown):
        shown.append(f"... and {len(problems) - len(shown)} more")
    return "".join(f"\n  {problem}" for problem in shown)


class PromptReader:
    """left_out: why a column isn't in the prompts' extra, by its name. own_columns: those that never are."""

    def __init__(
        self,
        tokenizer: Any,
        config: DataConfig,
        require_answer: bool,
        accept: Callable[[Prompt], Prompt] | None,
        source: str | None,
        own_columns: AbstractSet[str] = frozenset(),
    ) -> None:
        self._tokenizer = tokenizer
        self.template = chat_template(tokenizer, config.chat_template_kwargs) if config.apply_chat_template else None
        self._config = config
        self._require_answer = require_answer
        self._accept = accept
        self._source = source
        self._begin_ids = _begin_ids(tokenizer)
        self._used = {config.response_key} | own_columns
        self.left_out: dict[str, str] = {}

    def prompt(self, record: Record, index: int) -> Prompt:
        """Raises ValueError for what can't be read, NotText for what has no tokens."""
        config = self._config
        columns = columns_of(record, config)
        stored = columns.prompt
        if stored is MISSING:
            raise column_error(record, "no key", columns.prompt_name, columns.settings[0])
        answer = _answer(columns.answer, columns.answer_name)
        if self._require_answer and answer is None:
            raise column_error(record, "no answer under", columns.answer_name, columns.settings[1])
        if self.template is None or columns.is_plain:
            text, token_ids = self._text(stored, columns.prompt_name)
        else:
            text, token_ids = self._chat(columns, self.template)
        if not token_ids:
            raise ValueError("the prompt has no tokens")
        human = None if config.response_key is None else human_token_ids(record, config.response_key, self._tokenizer)
        prompt = Prompt(
            index=index,
            token_ids=np.asarray(token_ids, dtype=np.int32),
            text=text,
            answer=answer,
            human_token_ids=human,
            messages=to_plain(stored) if isinstance(stored, list) else None,
            extra=self._extra(record, columns),
            source=self._source,
        )
        return prompt if self._accept is None else self._accept(prompt)

    def _chat(self, columns: Columns, template: Template) -> tuple[str, list[int]]:
        stored, key = columns.prompt, columns.prompt_name
        messages = stored if isinstance(stored, list) else [{"role": "user", "content": _plain_text(stored, key)}]
        rendered = conversation.render(messages, partial(template, tools=columns.tools), key)
        if columns.tools and rendered == conversation.render(messages, template, key):
            raise ValueError("the chat template leaves the record's tools out")
        token_ids = self._tokenizer(rendered, add_special_tokens=False)["input_ids"]
        return stored if isinstance(stored, str) else rendered, token_ids

    def _text(self, stored: object, key: str) -> tuple[str, list[int]]:
        text = _plain_text(stored, key)
        token_ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if token_ids[: len(self._begin_ids)] != self._begin_ids:  # the text may spell its begin token out
            token_ids = self._begin_ids + token_ids
        return text, token_ids

    def _extra(self, record: Record, columns: Columns) -> Mapping[str, Any]:
        """The columns that no key names, and those of which a key names one field."""
        extra = {}
        for name, value in record.items():
            if name not in self._used | columns.names and name not in self.left_out:
                try:
                    extra[sys.intern(name)] = to_plain(value)  # a million records share the names of their columns
                except ValueError as error:
                    self.left_out[name] = str(error)
        return extra or _NOTHING


def _plain_text(prompt: object, key: str) -> str:
    if isinstance(prompt, list):
        raise ValueError(f"{key!r} is a list of messages; set data.apply_chat_template=true")
    if not isinstance(prompt, str):
        raise ValueError(f"{key!r} is a JSON {json_name(prompt)}, not text")
    if not prompt.strip():
        raise ValueError("empty prompt")
    if conversation.is_written_out(prompt):
        raise ValueError(f"{key!r} is a text that holds a JSON list of messages: store the list itself")
    check_text(prompt, repr(key))
    return prompt


def _answer(answer: object, key: str) -> str | None:
    if answer is None or answer is MISSING:
        return None
    if isinstance(answer, str):
        return answer
    if isinstance(answer, (int, float, Decimal)) and not isinstance(answer, bool):
        if not isinstance(answer, int) and not math.isfinite(answer):
            raise ValueError(f"{key!r} is {answer}, which is no answer: give text, a number or null")
        return str(answer)
    raise ValueError(f"{key!r} is a JSON {json_name(answer)}, not text or a number")


def _begin_ids(tokenizer: Any) -> list[int]:
    """[begin token] if the tokenizer puts it in front by default, else []."""
    begin = tokenizer.bos_token_id
    with_specials = tokenizer("a")["input_ids"]
    without = tokenizer("a", add_special_tokens=False)["input_ids"]
    adds_begin = begin is not None and with_specials[:1] == [begin] and without[:1] != [begin]
    return [begin] if adds_begin else []
