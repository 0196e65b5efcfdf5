"""Whether every value is of its key's type, choices and range. pydantic judges, the words are ours."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from sppo_megatron.config.keys import alternatives, choices, described, range_of, written
from sppo_megatron.config.schema import Config, all_keys
from sppo_megatron.errors import raise_problems


def to_config(values: dict[str, Any]) -> Config:
    """The typed configuration of a nested mapping of all its keys. Raises ConfigError with every wrong value."""
    raise_problems(find_problems(values))
    config = _adapter().validate_python(values)
    for key in all_keys().values():
        *groups, name = key.name.split(".")
        group = _at(config, groups)
        if key.is_path and (path := getattr(group, name)) is not None and path.startswith("~"):
            setattr(group, name, str(Path(path).expanduser()))
    return config


def check_values(config: Config) -> Iterator[str]:
    """What is wrong with the values of a configuration, one message for each key."""
    yield from find_problems(asdict(config))


def find_problems(values: dict[str, Any]) -> list[str]:
    """As `check_values`, of a nested mapping of all keys."""
    found: dict[str, str] = {}
    for name, key in all_keys().items():  # pydantic takes true for 1 and "off" for false
        value = _at(values, name.split("."))
        kinds = {kind for kind, _ in alternatives(key.hint)}
        if (bool in kinds and not isinstance(value, bool)) or (isinstance(value, bool) and kinds & {int, float}):
            found[name] = f"{name}={_shown(value)} must be {described(key.hint)}"
    try:
        _adapter().validate_python(values)
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_context=False):
            name, hint = _place(problem["loc"])
            found.setdefault(name, _explain(name, hint, problem["type"], problem["input"]))
    return list(found.values())


def _explain(name: str, hint: Any, problem: str, value: Any) -> str:
    if problem == "unexpected_keyword_argument":
        return f"{name} is not a known key"
    if problem == "missing":
        return f"{name} must be given: {described(hint)}"
    if (named := choices(hint)) is not None:
        near = difflib.get_close_matches(str(value), [str(choice) for choice in named], n=1)
        return f"{name}={_shown(value)} is not known: choose one of {', '.join(map(written, named))}" + "".join(
            f"; did you mean {choice}?" for choice in near
        )
    for kind, metadata in alternatives(hint):
        if (span := range_of(metadata)) and isinstance(value, (int, kind)):
            others = [written(*get_args(other)) for other, _ in alternatives(hint) if get_args(other)]
            return f"{name}={_shown(value)} must be {' or '.join([*others, span])}"
    return f"{name}={_shown(value)} must be {described(hint)}"


def _place(location: tuple[int | str, ...]) -> tuple[str, Any]:
    """The dotted name of where pydantic found a problem, and the annotation there."""
    name, hint = "", Config
    for part in location:
        kinds = [kind for kind, _ in alternatives(hint)]
        if is_dataclass(kinds[0]) and isinstance(part, str):
            name += f".{part}" if name else part
            hint = get_type_hints(kinds[0], include_extras=True).get(part, Any)
        elif get_origin(kinds[0]) is list and isinstance(part, int):
            name, hint = f"{name}[{part}]", get_args(kinds[0])[0]
        else:  # the name of one of several types
            break
    return name, hint


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else written(value)


def _at(values: Any, names: list[str]) -> Any:
    for name in names:
        values = values.get(name) if isinstance(values, dict) else getattr(values, name, None)
    return values


@cache
def _adapter() -> TypeAdapter[Config]:
    settings = ConfigDict(extra="forbid", coerce_numbers_to_str=True)
    return TypeAdapter(with_config(settings)(Config))
