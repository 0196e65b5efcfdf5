"""JSON as files of others hold it: read with a message for everything that is wrong, made plain for our own files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

_NAMES = {dict: "object", list: "list", str: "text", bool: "bool", int: "int", float: "float", type(None): "null"}


def parse_object(line: str) -> dict[str, Any]:
    """The JSON object of one line, which was decoded with errors="surrogateescape".

    Raises ValueError with the column: bytes that aren't UTF-8, what isn't JSON, a key that stands twice in an object,
    integers and nesting beyond Python's limits, another value than an object.
    """
    record = _parse(line)
    if not isinstance(record, dict):
        raise ValueError(f"is a JSON {json_name(record)}, not an object")
    return record


def parse_array(text: str) -> list[Any]:
    """As `parse_object`, for a text of several lines that is one JSON array."""
    values = _parse(text)
    if not isinstance(values, list):
        raise ValueError(f"is a JSON {json_name(values)}, not an array")
    return values


def _parse(text: str) -> Any:
    if not text.isascii():
        _check_utf8(text)
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ValueError(f"not JSON ({error.msg} at {line}column {error.colno})") from None
    except ValueError as error:
        raise ValueError("an integer has more digits than Python reads") if "digits" in str(error) else error from None
    except RecursionError:
        raise ValueError("not JSON that can be read (nested too deeply)") from None


def _check_utf8(text: str) -> None:
    """Raises ValueError for a byte that surrogateescape took up because it isn't UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) - 0xDC00
        line, column = text.count("\n", 0, error.start) + 1, error.start - text.rfind("\n", 0, error.start)
        where = f"column {column}" if line == 1 else f"line {line}, column {column}"
        raise ValueError(f"byte 0x{byte:02x} at {where} is not UTF-8: convert the file to UTF-8") from None


def json_name(value: object) -> str:
    """What kind of JSON value it is, in a word."""
    return _NAMES.get(type(value), type(value).__name__)


class NotText(ValueError):
    """Half of a surrogate pair stands in a text."""


def check_text(text: str, what: str) -> None:
    """Raises NotText if the text holds half of a surrogate pair, as JSON's "\\ud83d" does: no tokenizer takes it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise NotText(f"{what} holds {half} at character {error.start + 1}, half of a surrogate pair") from None


def to_plain(value: Any) -> Any:
    """The value in what JSON has: a float that isn't finite becomes null, dates and decimals text, arrays lists.

    Raises ValueError for a value that has no JSON, such as bytes, and for nesting beyond Python's limit.
    """
    try:
        return _to_plain(value)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _to_plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _to_plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain(entry) for entry in value]
    if isinstance(value, (date, time, datetime)):
        return value.isoformat()
    if isinstance(value, (Decimal, UUID)):
        return str(value)
    if hasattr(value, "tolist"):  # numpy's
        return _to_plain(value.tolist())
    raise ValueError(f"a {type(value).__name__} is no JSON value")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return record
