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
    if not line.isascii():
        check_utf8(line)
    try:
        record = json.loads(line, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("not JSON that can be read (nested too deeply)") from None
    if not isinstance(record, dict):
        raise ValueError(f"is a JSON {json_name(record)}, not an object")
    return record


def json_name(value: object) -> str:
    """What kind of JSON value it is, in a word."""
    return _NAMES.get(type(value), type(value).__name__)


def check_utf8(text: str) -> None:
    """Raises ValueError for a byte that surrogateescape took up because it isn't UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        byte, column = ord(text[error.start]) - 0xDC00, error.start + 1
        raise ValueError(f"byte 0x{byte:02x} at column {column} is not UTF-8: convert the file to UTF-8") from None


def check_text(text: str, what: str) -> None:
    """Raises ValueError if the text holds half of a surrogate pair, as JSON's "\\ud83d" does: no tokenizer takes it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise ValueError(f"{what} holds {half} at character {error.start + 1}, half of a surrogate pair") from None


def to_plain(value: Any) -> Any:
    """The value in what JSON has: a float that isn't finite becomes null, dates and decimals text, arrays lists.

    Raises ValueError for a value that has no JSON, such as bytes.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(entry) for entry in value]
    if isinstance(value, (date, time, datetime)):
        return value.isoformat()
    if isinstance(value, (Decimal, UUID)):
        return str(value)
    if hasattr(value, "tolist"):  # numpy's
        return to_plain(value.tolist())
    raise ValueError(f"a {type(value).__name__} is no JSON value")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return record
