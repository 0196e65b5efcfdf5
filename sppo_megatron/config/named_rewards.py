"""Rewards by name: what an entry of reward.named is, and how a source or a record says which of them it wants."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from sppo_megatron.config.reward import RewardConfig
from sppo_megatron.config.schema import Config
from sppo_megatron.config.values import find_problems, to_config

_OF_THE_RUN = ("named", "key", "max_failed_share")
_OF_THE_KIND = ("kind", "function", "mixture")  # an entry's own, and nobody else's


def choice_of(value: Any) -> dict[str, float]:
    """Names and weights of `name` or [{name: ..., weight: ...}, ...]; a weight that isn't given is 1.

    Raises ValueError for anything else, a name that stands twice, and a weight that is no finite number.
    """
    if isinstance(value, str) and value:
        return {value: 1.0}
    entries = value if isinstance(value, Sequence) and not isinstance(value, str) else []
    chosen: dict[str, float] = {}
    for entry in entries:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str) or set(entry) - {"name", "weight"}:
            raise ValueError(f"{entry!r} must be {{name: ..., weight: ...}}")
        name, weight = entry["name"], entry.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
            raise ValueError(f"weight={weight!r} of {name} must be a finite number")
        if name in chosen:
            raise ValueError(f"{name} stands twice")
        chosen[name] = float(weight)
    if not chosen:
        raise ValueError(f"{value!r} is no name of a reward, and no list [{{name: ..., weight: ...}}, ...]")
    return chosen


def named_reward(reward: RewardConfig, name: str) -> RewardConfig:
    """An entry of reward.named: its own keys, the others as `reward` has them. See `check_named_values`."""
    return to_config(_values(reward, name)).reward


def check_named_values(reward: RewardConfig, name: str) -> Iterator[str]:
    """What is wrong with the values of an entry, one message each."""
    where, entry = f"reward.named.{name}", reward.named[name]
    if not isinstance(entry, Mapping) or not isinstance(entry.get("kind"), str):
        yield f"{where}={entry!r} must be {{kind: ..., ...}}"
        return
    if unknown := [key for key in _OF_THE_RUN if key in entry]:
        yield f"{where}: {', '.join(unknown)} can't differ from reward to reward"
        return
    for problem in find_problems(_values(reward, name)):
        yield where + problem.removeprefix("reward")


def _values(reward: RewardConfig, name: str) -> dict[str, Any]:
    """A whole configuration with this reward, for the judge of values."""
    plain = replace(reward, named={}, key=None, **{key: getattr(RewardConfig(), key) for key in _OF_THE_KIND})
    return asdict(Config()) | {"reward": _merged(asdict(plain), reward.named[name])}


def _merged(values: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**values, **own}
    for key, value in own.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), Mapping):
            merged[key] = _merged(values[key], value)
    return merged
