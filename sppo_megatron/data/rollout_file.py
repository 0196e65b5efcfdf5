"""The rollout file: JSONL, one group a line; what a run writes and what a replay reads.

A line is
    {"prompt_token_ids": [..], "prompt": "..", "answer": "..", "prompt_index": 3, "human_token_ids": [..],
     "responses": [
      {"token_ids": [..], "text": "..", "rollout_log_probs": [..], "finish_reason": "stop", "reward": 0.5,
       "policy_version": 12, "old_log_probs": [..], "correct": true, "error": ".."}], "preference": [[..]]}
Only prompt_token_ids and responses with their token_ids are required. Unknown fields are ignored. Log-probs are written
with all the digits a float32 needs, so they are read back bitwise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sppo_megatron.data.atomic_file import atomic_file
from sppo_megatron.types import Group, Prompt, Response

INT32_MAX = 2**31 - 1


def write_groups(path: str | Path, groups: Iterable[Group]) -> None:
    """Writes the file as a whole or not at all: a reader never sees half of it, also after a crash.

    Raises ValueError, and leaves what was there before, if a group breaks one of `read_groups`' rules.
    """
    with atomic_file(path) as file:
        for number, group in enumerate(groups, start=1):
            try:
                file.write(group_line(group))
            except ValueError as error:
                raise ValueError(f"cannot write {path}: group {number}: {error}") from None


def group_line(group: Group) -> bytes:
    """The group's line with its end, in UTF-8; half a surrogate pair is written in JSON's own notation.

    Raises ValueError if the group breaks one of `read_groups`' rules.
    """
    record = _to_record(group)
    _to_group(record, index=0)
    line = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
    return line.encode("utf-8", errors="backslashreplace")


def read_groups(path: str | Path, start: int = 0, stop: int | None = None) -> list[Group]:
    """Groups start..stop of the file in file order (all where stop is None); lines outside are not parsed.

    A group without prompt_index gets its 0-based place in the file as `Prompt.index`.

    Raises ValueError naming file, line and response: broken JSON (a torn last line too), a missing or empty
    prompt_token_ids, ids that are not integers in [0, 2³¹), log-probs that are not finite or not one per token, a
    preference that is not a finite K×K matrix, a reward that is not a finite number. A response may have no tokens.
    """
    return list(iterate_groups(path, start, stop))


def count_responses(path: str | Path) -> list[int]:
    """The number of responses of each group. Checks the file as `read_groups` does, one group in memory at a time."""
    return [len(group.responses) for group in iterate_groups(path)]


def iterate_groups(path: str | Path, start: int = 0, stop: int | None = None) -> Iterator[Group]:
    """As `read_groups`, one group in memory at a time."""
    index = 0
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            if stop is not None and index >= stop:
                return
            if index >= start:
                try:
                    yield _to_group(_loads(line), index)
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: {error}") from None
            index += 1


def _loads(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        torn = "" if line.endswith("\n") else "; the line has no end, so the file was probably cut off while written"
        raise ValueError(f"not JSON ({error.msg} at column {error.colno}){torn}") from None
    if not isinstance(record, dict):
        raise ValueError(f"is a JSON {type(record).__name__}, not an object")
    return record


def _to_record(group: Group) -> dict[str, Any]:
    prompt = group.prompt
    record: dict[str, Any] = {"prompt_token_ids": prompt.token_ids.tolist()}
    record |= _given(prompt=prompt.text, answer=prompt.answer, prompt_index=prompt.index)
    if prompt.human_token_ids is not None:
        record["human_token_ids"] = prompt.human_token_ids.tolist()
    record["responses"] = [_response_to_record(response) for response in group.responses]
    if group.preference is not None:
        record["preference"] = group.preference.tolist()
    return record


def _response_to_record(response: Response) -> dict[str, Any]:
    return {"token_ids": response.token_ids.tolist()} | _given(
        text=response.text,
        rollout_log_probs=_numbers(response.rollout_log_probs),
        old_log_probs=_numbers(response.old_log_probs),
        finish_reason=response.finish_reason,
        policy_version=response.policy_version,
        reward=None if response.reward is None else float(response.reward),
        correct=None if response.correct is None else bool(response.correct),
        error=response.error,
    )


def _numbers(values: np.ndarray | None) -> list[float] | None:
    """float32 -> float64 is exact, and float64's shortest text reads back as the same float64."""
    return None if values is None else np.asarray(values, dtype=np.float32).tolist()


def _given(**fields: Any) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def _to_group(record: dict[str, Any], index: int) -> Group:
    token_ids = _token_ids(record.get("prompt_token_ids"), "prompt_token_ids")
    if not token_ids.size:
        raise ValueError("prompt_token_ids is empty")
    stored = record.get("responses")
    if not isinstance(stored, list):
        raise ValueError("responses is missing or not a list")
    prompt = Prompt(
        index=_typed(record, "prompt_index", int, index),
        token_ids=token_ids,
        text=_typed(record, "prompt", str),
        answer=_answer(record),
        human_token_ids=_human_token_ids(record),
    )
    responses = []
    for number, response in enumerate(stored, start=1):
        try:
            responses.append(_to_response(response))
        except ValueError as error:
            raise ValueError(f"response {number}: {error}") from None
    return Group(prompt=prompt, responses=responses, preference=_preference(record.get("preference"), len(responses)))


def _to_response(record: object) -> Response:
    if not isinstance(record, dict):
        raise ValueError(f"is a JSON {type(record).__name__}, not an object")
    token_ids = _token_ids(record.get("token_ids"), "token_ids")
    reward = record.get("reward")
    if reward is not None and not (_is_number(reward) and math.isfinite(reward)):
        raise ValueError(f"reward must be a finite number, got {reward!r}")
    return Response(
        token_ids=token_ids,
        text=_typed(record, "text", str),
        rollout_log_probs=_log_probs(record, "rollout_log_probs", len(token_ids)),
        old_log_probs=_log_probs(record, "old_log_probs", len(token_ids)),
        finish_reason=_typed(record, "finish_reason", str, "stop"),
        policy_version=_typed(record, "policy_version", int),
        reward=None if reward is None else float(reward),
        correct=_typed(record, "correct", bool),
        error=_typed(record, "error", str),
    )


def _typed(record: dict[str, Any], key: str, kind: type, default: Any = None) -> Any:
    """The field, or the default where it is absent or null."""
    value = record.get(key)
    if value is None:
        return default
    if type(value) is not kind:
        raise ValueError(f"{key} must be a JSON {kind.__name__}, got {value!r}")
    return value


def _answer(record: dict[str, Any]) -> str | None:
    answer = record.get("answer")
    return str(answer) if _is_number(answer) else _typed(record, "answer", str)


def _human_token_ids(record: dict[str, Any]) -> np.ndarray | None:
    values = record.get("human_token_ids")
    return None if values is None else _token_ids(values, "human_token_ids")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _token_ids(values: object, name: str) -> np.ndarray:
    if not isinstance(values, list):
        raise ValueError(f"{name} is missing or not a list")
    for place, value in enumerate(values):
        if type(value) is not int or not 0 <= value <= INT32_MAX:
            raise ValueError(f"{name}[{place}] must be an integer in [0, 2^31), got {value!r}")
    return np.array(values, dtype=np.int32)


def _log_probs(record: dict[str, Any], key: str, num_tokens: int) -> np.ndarray | None:
    values = record.get(key)
    if values is None:
        return None
    if not isinstance(values, list) or not all(_is_number(value) for value in values):
        raise ValueError(f"{key} must be a list of numbers")
    if len(values) != num_tokens:
        raise ValueError(f"{key} has {len(values)} values for {num_tokens} token_ids")
    with np.errstate(over="ignore"):
        log_probs = np.array(values, dtype=np.float64).astype(np.float32)
    if not np.isfinite(log_probs).all():
        place = int(np.flatnonzero(~np.isfinite(log_probs))[0])
        raise ValueError(f"{key}[{place}] is not finite: {values[place]!r}")
    return log_probs


def _preference(rows: object, num_responses: int) -> np.ndarray | None:
    if rows is None:
        return None
    expected = f"preference must be a {num_responses}×{num_responses} matrix of finite numbers, one row per response"
    if not isinstance(rows, list) or len(rows) != num_responses:
        raise ValueError(expected)
    for row in rows:
        if not isinstance(row, list) or len(row) != num_responses or not all(_is_number(value) for value in row):
            raise ValueError(expected)
    matrix = np.array(rows, dtype=np.float64).reshape(num_responses, num_responses)
    if not np.isfinite(matrix).all():
        raise ValueError(expected)
    return matrix
