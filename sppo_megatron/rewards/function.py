"""A user's own function, of one response or of two, named by "module:name"."""

from __future__ import annotations

import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sppo_megatron.errors import ConfigError
from sppo_megatron.rewards.verifiers import Score

RESPONSE_ARGUMENTS = ("prompt", "response", "answer")
PAIR_ARGUMENTS = ("prompt", "first", "second", "answer")
# What a function may ask for besides, by name: of the prompt, and of the response (of both, as a pair, in that order).
PROMPT_EXTRAS = ("messages", "extra", "source", "group")
RESPONSE_EXTRAS = ("token_ids", "loss_mask", "finish_reason")


@dataclass(frozen=True)
class UserFunction:
    """A function with what it is to be called with. num_positional: so many of the texts are given by place, the
    function's own names for them being others. names: what is given by name."""

    function: Callable[..., Any]
    num_positional: int
    names: tuple[str, ...]

    def __call__(self, positional: Sequence[Any], named: Mapping[str, Any]) -> Any:
        return self.function(*positional, **named)


def load_function(path: str, arguments: tuple[str, ...] = RESPONSE_ARGUMENTS) -> UserFunction:
    """Imports "package.module:name" (or "module:Class.method"); the current directory counts, as under `python -m`.

    arguments: the texts that it is called with by place, if its parameters have other names (answer: text or None).
    It is given by name what its signature asks for of these and of PROMPT_EXTRAS and RESPONSE_EXTRAS. See `to_score`
    and `to_probability` for what it returns.
    Raises ConfigError saying what to change.
    """
    return by_signature(find_function(path, "reward.function"), f"reward.function={path!r}", arguments)


def find_function(path: str, key: str) -> Callable[..., Any]:
    """What "package.module:name" names. key: the setting that names it. Raises ConfigError saying what to change."""
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise ConfigError(f'{key}={path!r} is not of the form "module:name", such as "my_module:length"')
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(
            f"{key}={path!r}: cannot import {module_name!r}: {type(error).__name__}: {error}; "
            f"put it on PYTHONPATH or in the current directory ({os.getcwd()})"
        ) from error
    function: Any = module
    for part in name.split("."):
        if not hasattr(function, part):
            there = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
            raise ConfigError(f"{key}={path!r}: {module_name!r} has no {name!r}; it has {there}")
        function = getattr(function, part)
    if not callable(function):
        raise ConfigError(f"{key}={path!r} is a {type(function).__name__}, not a function")
    return function


def by_signature(
    function: Callable[..., Any], what: str, arguments: tuple[str, ...] = RESPONSE_ARGUMENTS
) -> UserFunction:
    """By name if the function requires nothing that has another name, else the texts by place. what: for messages."""
    known = (*arguments, *PROMPT_EXTRAS, *RESPONSE_EXTRAS)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none
        return UserFunction(function, len(arguments), ())
    parameters = list(signature.parameters.values())
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        asked = known
    else:
        asked = tuple(p.name for p in parameters if p.name in known and p.kind is not p.POSITIONAL_ONLY)
    if asked and _takes(signature, (), asked):
        return UserFunction(function, 0, asked)
    extras = tuple(name for name in asked if name not in arguments)
    for names in (extras, ()):
        if _takes(signature, arguments, names):
            return UserFunction(function, len(arguments), names)
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise ConfigError(
            f"{what} is called as f({', '.join(arguments)}), which {signature} refuses: {error}; "
            f"by name it may ask for any of {', '.join(known)}"
        ) from None
    raise AssertionError("what binds was taken above")


def _takes(signature: inspect.Signature, positional: Sequence[str], names: Sequence[str]) -> bool:
    try:
        signature.bind(*positional, **dict.fromkeys(names))
    except TypeError:
        return False
    return True


def to_score(result: Any) -> Score:
    """What a reward function returned, as plain numbers.

    result: a number, a bool, (number, bool or None), or an object with .reward and, optionally, .correct.
    Raises ValueError if it isn't a reward.
    """
    reward, correct = result, None
    if isinstance(result, (bool, np.bool_)):
        correct = result
    elif hasattr(result, "reward"):
        reward, correct = result.reward, getattr(result, "correct", None)
    elif isinstance(result, tuple):
        if len(result) != 2:
            raise ValueError(f"the reward function returned a tuple of {len(result)}, expected (reward, correct)")
        reward, correct = result
    return Score(_to_float(reward), _to_bool(correct))


def to_probability(result: Any) -> float:
    """What a pairwise function returned: P(first wins). Raises ValueError if that isn't a number in [0, 1]."""
    probability = _to_float(result)
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"the reward function returned {_short(result)}, not a probability in [0, 1]")
    return probability


def _to_float(reward: Any) -> float:
    # float("1.5") would work; a string is nevertheless somebody's mistake.
    if not isinstance(reward, (str, bytes)):
        try:
            value = float(reward)
        except Exception:
            value = math.nan
        if math.isfinite(value):
            return value
    raise ValueError(f"the reward function returned {_short(reward)}, not a finite number")


def _to_bool(correct: Any) -> bool | None:
    if correct is None:
        return None
    try:
        if correct == 0 or correct == 1:  # also numpy's bool and tensors
            return bool(correct)
    except Exception:
        pass
    raise ValueError(f"the reward function returned correct={_short(correct)}, not a bool")


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."
