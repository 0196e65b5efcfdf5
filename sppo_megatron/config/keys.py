"""The words that keys are declared with: what a value may be, and what a change of it does to a run that continues.

A key is one annotated field of a group's dataclass, with its meaning as the string literal below it:

    lr: Free[Positive[float]] = 1e-6
    "Learning rate after the warm-up."

The constraints are those of `annotated_types`, which pydantic enforces (`config.values`).
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Interval, Le, Lt

MISSING = "???"  # OmegaConf's marker for "must be given"

T = TypeVar("T")


class Resume(Enum):
    """What a changed value does if a run continues with it (`Free`, `NextIteration`, `Fixed`)."""

    FREE = "free"
    NEXT_ITERATION = "next iteration"
    FIXED = "fixed"


Free = Annotated[T, Resume.FREE]
"""The new value holds at once. It changes no number, or it is meant to be changed on the way, as the learning rate."""
NextIteration = Annotated[T, Resume.NEXT_ITERATION]
"""An iteration that was begun is finished as it was begun; the new value holds from the next one."""
Fixed = Annotated[T, Resume.FIXED]
"""What was trained so far depends on it: it can't change within a run."""

AtLeastOne = Annotated[T, Ge(1)]
Positive = Annotated[T, Gt(0)]
NotNegative = Annotated[T, Ge(0)]
Finite = Annotated[T, Interval(gt=-math.inf, lt=math.inf)]
UserPath = Annotated[str, "path"]
"""A path, whose leading `~` is the home folder."""


@dataclass(frozen=True)
class Key:
    """One key: its dotted name, annotation, default (`MISSING` if it must be given), and the class of its group."""

    name: str
    hint: Any
    default: Any
    group: type

    @property
    def resume(self) -> Resume:
        (marker,) = (item for item in getattr(self.hint, "__metadata__", ()) if isinstance(item, Resume))
        return marker

    @property
    def is_path(self) -> bool:
        return any("path" in metadata for _, metadata in alternatives(self.hint))

    @property
    def is_text(self) -> bool:
        """Whether any text is a value of it: the command line takes it as it stands."""
        return {kind for kind, _ in alternatives(self.hint)} - {type(None)} == {str}


def keys_of(group: type, prefix: str = "") -> Iterator[Key]:
    """Every key of a group's dataclass and of the groups in it, in order of declaration."""
    hints, defaults = get_type_hints(group, include_extras=True), group()
    for field in fields(group):
        name, hint = prefix + field.name, hints[field.name]
        if is_dataclass(hint):
            yield from keys_of(hint, f"{name}.")  # type: ignore[arg-type]
        else:
            yield Key(name, hint, getattr(defaults, field.name), group)


def alternatives(hint: Any, metadata: tuple[Any, ...] = ()) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The types of a value, each with its metadata: `AtLeastOne[int] | None` -> (int, (Ge(1),)), (NoneType, ())."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        yield from alternatives(arguments[0], (*metadata, *hint.__metadata__))
    elif origin in (Union, types.UnionType):
        for argument in arguments:
            yield from alternatives(argument, metadata)
    else:
        yield hint, metadata


def choices(hint: Any) -> list[Any] | None:
    """The values of a key that names them all; None for any other key."""
    found: list[Any] = []
    for kind, _ in alternatives(hint):
        if get_origin(kind) is not Literal and kind is not type(None):
            return None
        found += get_args(kind) or (None,)
    return found


def described(hint: Any) -> str:
    """What a value may be, in words: `a whole number of at least 1 or null`."""
    if (named := choices(hint)) is not None:
        return f"one of {', '.join(map(written, named))}"
    return " or ".join(_described(kind, range_of(metadata)) for kind, metadata in alternatives(hint))


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list [a, b]",
    dict: "a mapping {key: value}",
    type(None): "null",
}


def _described(kind: Any, span: str | None) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(written, get_args(kind)))
    word = _WORDS.get(get_origin(kind) or kind, "a group of keys")
    return f"{word} {'of ' if span.startswith('at ') else ''}{span}" if span else word


def range_of(metadata: tuple[Any, ...]) -> str | None:
    """The constraints in words: `at least 1`, `in (0, 1]`; None without one."""
    low: Any = None
    high: Any = None
    shut = ["(", ")"]
    for item in (part for whole in metadata for part in (whole if isinstance(whole, Interval) else [whole])):
        if isinstance(item, (Gt, Ge)):
            low, shut[0] = (item.gt, "(") if isinstance(item, Gt) else (item.ge, "[")
        elif isinstance(item, (Lt, Le)):
            high, shut[1] = (item.lt, ")") if isinstance(item, Lt) else (item.le, "]")
    if low == -math.inf and high == math.inf:
        return "that is finite"
    if low is not None and high is not None:
        return f"in {shut[0]}{low}, {high}{shut[1]}"
    if low is not None:
        return f"{'above' if shut[0] == '(' else 'at least'} {low}"
    return None if high is None else f"{'below' if shut[1] == ')' else 'at most'} {high}"


def written(value: Any) -> str:
    """A value as YAML and the command line have it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
