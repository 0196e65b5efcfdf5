"""Records as other trainers have them: where each format keeps the prompt, the answer and the tools."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sppo_megatron.config import DataConfig
from sppo_megatron.data.json_values import json_name, to_plain
from sppo_megatron.data.records import MISSING, Record, column

_KEY = "data.answer_key"


@dataclass(frozen=True)
class Columns:
    """What a record holds, MISSING if it hasn't, each with the name of its column and what sets that, for messages.

    prompt: text or messages. tools: functions that the conversation may call, None without. is_plain: the prompt is
    what the model continues, also if others get a chat template.
    """

    prompt: Any
    prompt_name: str
    answer: Any
    answer_name: str
    settings: tuple[str, str] = ("data.prompt_key", "data.answer_key")
    tools: Any = None
    is_plain: bool = False

    @property
    def names(self) -> set[str]:
        """Columns that are no extra."""
        return {self.prompt_name, self.answer_name}


def columns_of(record: Record, config: DataConfig) -> Columns:
    """Raises ValueError, naming the column, for a record that isn't of config.format."""
    return _FORMATS[config.format](record, config)


def _by_keys(record: Record, config: DataConfig) -> Columns:
    prompt, answer = config.prompt_key, config.answer_key
    return Columns(column(record, prompt), prompt, column(record, answer), answer)


def _verl(record: Record, config: DataConfig) -> Columns:
    """data_source, prompt (messages), ability, reward_model {style, ground_truth}, extra_info. A ground truth that is a
    list or an object, as tests of programs are, is given as JSON text."""
    name = "reward_model.ground_truth"
    model = column(record, "reward_model")
    if model is not MISSING and model is not None and not isinstance(model, dict):
        raise ValueError(f"'reward_model' is a JSON {json_name(model)}, not an object with ground_truth (verl)")
    answer = column(record, name)
    if isinstance(answer, (list, dict)):
        answer = json.dumps(to_plain(answer))
    return Columns(column(record, "prompt"), "prompt", answer, name, ("data.format=verl",) * 2)


def _trl(record: Record, config: DataConfig) -> Columns:
    """prompt as text or messages, tools; the answer's column is the reward's own."""
    prompt, answer = column(record, "prompt"), column(record, config.answer_key)
    tools, is_plain = tools_of(record, "tools"), isinstance(prompt, str)
    return Columns(prompt, "prompt", answer, config.answer_key, ("data.format=trl", _KEY), tools, is_plain)


def _openai(record: Record, config: DataConfig) -> Columns:
    """messages and tools, as for OpenAI's fine-tuning: a last turn of the assistant is the answer."""
    prompt, answer = _split("messages", column(record, "messages"))
    name, setting = "messages", "data.format=openai"
    if answer is MISSING:
        answer, name = column(record, config.answer_key), config.answer_key
    return Columns(prompt, "messages", answer, name, (setting, _KEY), tools_of(record, "tools"))


def _nemo_rl(record: Record, config: DataConfig) -> Columns:
    """input and output as texts; messages; or NeMo Gym's responses_create_params {input, tools} and expected_answer."""
    settings = ("data.format=nemo_rl",) * 2
    if "responses_create_params" in record:
        prompt = column(record, "responses_create_params.input")
        tools = tools_of(record, "responses_create_params.tools")
        answer = column(record, "expected_answer")
        return Columns(prompt, "responses_create_params.input", answer, "expected_answer", settings, tools)
    if "messages" in record:
        prompt, answer = _split("messages", record["messages"])
        return Columns(prompt, "messages", answer, "messages", settings, tools_of(record, "tools"))
    return Columns(column(record, "input"), "input", column(record, "output"), "output", settings)


_FORMATS: dict[str | None, Callable[[Record, DataConfig], Columns]] = {
    None: _by_keys,
    "verl": _verl,
    "trl": _trl,
    "nemo_rl": _nemo_rl,
    "openai": _openai,
}


def _split(name: str, messages: Any) -> tuple[Any, Any]:
    """(the conversation without its last turn of the assistant, that turn's text; MISSING if it ends otherwise)."""
    if not isinstance(messages, list):
        if messages is not MISSING:
            raise ValueError(f"{name!r} is a JSON {json_name(messages)}, not a list of messages")
        return MISSING, MISSING
    last = messages[-1] if messages else None
    if not isinstance(last, dict) or last.get("role") != "assistant":
        return messages, MISSING
    if not isinstance(last.get("content"), str):
        raise ValueError(f"{name!r}, message {len(messages)}: the last turn of the assistant has no text")
    return messages[:-1], last["content"]


def tools_of(record: Record, name: str) -> Any:
    """A list of functions, None without any. JSON text of a list is taken, too, as tables hold what differs by row."""
    stored = column(record, name)
    if stored is MISSING or stored is None:
        return None
    tools = stored
    if isinstance(stored, str):
        try:
            tools = json.loads(stored)
        except ValueError:
            raise ValueError(f"{name!r} is a text that is no JSON") from None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f"{name!r} is a JSON {json_name(tools)}, not a list of functions")
    return _given(to_plain(tools)) or None


def _given(value: Any) -> Any:
    """Without nulls: tables give every function the fields of all."""
    if isinstance(value, dict):
        return {key: _given(entry) for key, entry in value.items() if entry is not None}
    return [_given(entry) for entry in value] if isinstance(value, list) else value
