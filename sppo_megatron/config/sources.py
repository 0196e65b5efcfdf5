"""Data sources: what one entry of data.sources or data.eval_sources holds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sppo_megatron.config.data import DataConfig, is_hub_id
from sppo_megatron.config.keys import choices
from sppo_megatron.config.named_rewards import choice_of
from sppo_megatron.config.reward import RewardConfig
from sppo_megatron.config.schema import all_keys

# Keys of `data` that a source may have a value of its own for
_OF_RECORDS = (
    "format",
    "prompt_key",
    "answer_key",
    "response_key",
    "apply_chat_template",
    "chat_template_kwargs",
    "max_prompt_length",
    "score_keys",
    "score_scale",
    "probability_key",
)
_OF_TRAINING = ("weight", "repeat")
_NAME = r"[\w.-]+"


@dataclass(frozen=True)
class Source:
    """One source of prompts. name: None for the only one. key: the setting that names it, for messages.

    split: of data that has several, None for the only one or default_split. weights: of iterations 0, 1, ..., the last
    of which holds from then on. repeat: whether it begins again at its end. data: how its records are read.
    reward: what the entry says of it, a named reward or several (`choice_of`), or one of its own; None if nothing.
    """

    name: str | None
    path: str
    key: str
    data: DataConfig
    split: str | None = None
    default_split: str = "train"
    weights: tuple[float, ...] = (1.0,)
    repeat: bool = True
    reward: Any = None


def training_sources(data: DataConfig) -> list[Source]:
    """Those of data.sources, or data.train_path as the only one; none if neither is given."""
    return _sources("data.sources", data.sources, data, data.train_path, data.train_split, "data.train_path")


def evaluation_sources(data: DataConfig) -> list[Source]:
    """As `training_sources`, of data.eval_sources and data.eval_path."""
    data = replace(data, response_key=None)
    sources = _sources("data.eval_sources", data.eval_sources, data, data.eval_path, data.eval_split, "data.eval_path")
    return [replace(source, default_split="test") for source in sources]


def with_rewards_of_sources(reward: RewardConfig, data: DataConfig) -> RewardConfig:
    """The reward with what entries hold as `reward: {kind: ..., ...}` among its named ones, under their own names."""
    entries = [*data.sources, *data.eval_sources]
    own = {str(entry.get("name")): entry["reward"] for entry in entries if isinstance(entry.get("reward"), Mapping)}
    return replace(reward, named={**reward.named, **own})


def _sources(
    key: str, entries: Sequence[Mapping[str, Any]], data: DataConfig, path: str | None, split: str | None, short: str
) -> list[Source]:
    if not entries:
        return [] if path is None else [Source(None, path, short, data, split)]
    # Others are no sources, which check_sources tells.
    return [_source(f"{key}.{entry['name']}", entry, data) for entry in entries if {"name", "path"} <= set(entry)]


def _source(key: str, entry: Mapping[str, Any], data: DataConfig) -> Source:
    own = {name: entry[name] for name in _OF_RECORDS if name in entry}
    weight = entry.get("weight", 1.0)
    return Source(
        name=entry["name"],
        path=str(Path(entry["path"]).expanduser()) if str(entry["path"]).startswith("~") else entry["path"],
        key=key,
        data=replace(data, **own),
        split=entry.get("split"),
        weights=tuple(weight) if isinstance(weight, (list, tuple)) else (weight,),
        repeat=entry.get("repeat", True),
        reward=entry.get("reward"),
    )


def check_sources(data: DataConfig) -> Iterator[str]:
    """What is wrong with the entries, one message each."""
    for key, short in (("sources", "train_path"), ("eval_sources", "eval_path")):
        entries = getattr(data, key)
        if entries and getattr(data, short) is not None:
            yield f"data.{short} is the short form of a single entry of data.{key}: give one of them"
        names = [entry.get("name") for entry in entries]
        if len({str(name) for name in names}) < len(names):
            yield f"data.{key} has two sources of one name: {', '.join(map(str, names))}"
        for place, entry in enumerate(entries):
            yield from (f"data.{key}[{place}]: {p}" for p in _problems(entry, is_training=key == "sources"))
    weights = [entry.get("weight", 1.0) for entry in data.sources]
    schedules = [w if isinstance(w, (list, tuple)) else [w] for w in weights]
    if schedules and all(_are_weights(schedule) and any(schedule) for schedule in schedules):
        for i in range(max(map(len, schedules))):
            if not any(schedule[min(i, len(schedule) - 1)] for schedule in schedules):
                yield f"data.sources: every source has weight 0 in iteration {i}"


def _problems(entry: Mapping[str, Any], is_training: bool) -> Iterator[str]:
    name, path = entry.get("name"), entry.get("path")
    if not isinstance(name, str) or not re.fullmatch(_NAME, name):
        yield f"name={name!r} must be a word, which its metrics are called by"
    if not isinstance(path, str):
        yield "a source needs path: a file or folder of prompts, or a hub id"
    elif not Path(path).expanduser().exists() and not is_hub_id(path):
        yield f"path={path} does not exist"
    known = ("name", "path", "split", "reward", *_OF_RECORDS, *(_OF_TRAINING if is_training else ()))
    if unknown := sorted(set(entry) - set(known)):
        yield f"{', '.join(unknown)} is not known: a source has {', '.join(known)}"
    if not isinstance(entry.get("repeat", True), bool):
        yield f"repeat={entry['repeat']!r} must be true or false"
    for key in _OF_RECORDS:
        if key in entry and not _fits(key, entry[key]):
            yield f"{key}={entry[key]!r} is no value of data.{key}"
    try:
        if not isinstance(entry.get("reward", {}), Mapping):
            choice_of(entry["reward"])
    except ValueError as error:
        yield f"reward: {error}"
    weight = entry.get("weight", 1.0)
    if isinstance(weight, (list, tuple)):
        if not _are_weights(weight) or not any(weight):
            yield f"weight={list(weight)} must be numbers of at least 0, of iterations 0, 1, ..., one of them above 0"
    elif not _are_weights([weight]) or not weight:
        yield f"weight={weight!r} must be a number above 0, or a list of numbers by iteration; or take the source away"


def _are_weights(values: Sequence[Any]) -> bool:
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) and 0 <= v < float("inf") for v in values)


def _fits(key: str, value: Any) -> bool:
    if key == "apply_chat_template":
        return isinstance(value, bool)
    if key == "format":
        return value in (choices(all_keys()["data.format"].hint) or [])
    if key == "chat_template_kwargs":
        return isinstance(value, Mapping)
    if key == "max_prompt_length":
        return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)
    if key == "score_keys":
        return isinstance(value, Sequence) and all(isinstance(name, str) for name in value)
    if key == "score_scale":
        return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")
    return isinstance(value, str) or (key in ("response_key", "probability_key") and value is None)
