"""A group as the JSON object of its line in a rollout file, and back with every field checked."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sppo_megatron.data.json_values import json_name, to_plain
from sppo_megatron.types import Group, Prompt, Response

INT32_MAX = 2**31 - 1


def to_record(group: Group) -> dict[str, Any]:
    """Fields that are None are left out. Raises ValueError if messages or extra hold what JSON hasn't."""
    prompt = group.prompt
    record: dict[str, Any] = {"prompt_token_ids": prompt.token_ids.tolist()}
    record |= _given(prompt=prompt.text, answer=prompt.answer, prompt_index=prompt.index)
    if prompt.human_token_ids is not None:
        record["human_token_ids"] = prompt.human_token_ids.tolist()
    record |= _given(messages=to_plain(prompt.messages), extra=to_plain(prompt.extra) or None, source=prompt.source)
    record |= _given(rewards=None if prompt.rewards is None else dict(prompt.rewards))
    record["responses"] = [_response_to_record(response) for response in group.responses]
    if group.preference is not None:
        record["preference"] = group.preference.tolist()
    return record


def to_group(record: dict[str, Any], index: int) -> Group:
    """index: the prompt's, if the record has none. Raises ValueError naming the response and the field."""
    token_ids = _token_ids(record.get("prompt_token_ids"), "prompt_token_ids")
    if not token_ids.size:
        raise ValueError("prompt_token_ids is empty")
    stored = record.get("responses")
    if not isinstance(stored, list):
        raise ValueError("responses is missing or not a list")
    human = record.get("human_token_ids")
    prompt = Prompt(
        index=_typed(record, "prompt_index", int, index),
        token_ids=token_ids,
        text=_typed(record, "prompt", str),
        answer=_answer(record),
        human_token_ids=None if human is None else _token_ids(human, "human_token_ids"),
        messages=_messages(record),
        extra=to_plain(_typed(record, "extra", dict, {})),
        source=_typed(record, "source", str),
        rewards=_rewards(record),
    )
    responses = []
    for number, response in enumerate(stored, start=1):
        try:
            responses.append(_to_response(response))
        except ValueError as error:
            raise ValueError(f"response {number}: {error}") from None
    return Group(prompt=prompt, responses=responses, preference=_preference(record.get("preference"), len(responses)))


def _response_to_record(response: Response) -> dict[str, Any]:
    mask = response.loss_mask
    return {"token_ids": response.token_ids.tolist()} | _given(
        loss_mask=None if mask is None else np.asarray(mask, dtype=np.int8).tolist(),
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


def _to_response(record: object) -> Response:
    if not isinstance(record, dict):
        raise ValueError(f"is a JSON {json_name(record)}, not an object")
    token_ids = _token_ids(record.get("token_ids"), "token_ids")
    mask = _loss_mask(record.get("loss_mask"), len(token_ids))
    reward = record.get("reward")
    if reward is not None and not (_is_number(reward) and np.isfinite(_floats([reward])[0])):
        raise ValueError(f"reward must be a finite number, got {_short(reward)}")
    return Response(
        token_ids=token_ids,
        text=_typed(record, "text", str),
        rollout_log_probs=_log_probs(record, "rollout_log_probs", token_ids, mask),
        old_log_probs=_log_probs(record, "old_log_probs", token_ids, mask),
        finish_reason=_typed(record, "finish_reason", str, "stop"),
        policy_version=_typed(record, "policy_version", int),
        reward=None if reward is None else float(reward),
        correct=_typed(record, "correct", bool),
        error=_typed(record, "error", str),
        loss_mask=mask,
    )


def _typed(record: dict[str, Any], key: str, kind: type, default: Any = None) -> Any:
    """The field, or the default if it is absent or null."""
    value = record.get(key)
    if value is None:
        return default
    if type(value) is not kind:
        raise ValueError(f"{key} must be a JSON {kind.__name__}, got {_short(value)}")
    return value


def _answer(record: dict[str, Any]) -> str | None:
    answer = record.get("answer")
    return str(answer) if _is_number(answer) else _typed(record, "answer", str)


def _messages(record: dict[str, Any]) -> list[dict[str, Any]] | None:
    messages = _typed(record, "messages", list)
    for number, message in enumerate(messages or [], start=1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f'messages: message {number} is not an object with a "role"')
    return to_plain(messages)


def _rewards(record: dict[str, Any]) -> dict[str, float] | None:
    rewards = _typed(record, "rewards", dict)
    for name, weight in (rewards or {}).items():
        if not (_is_number(weight) and np.isfinite(_floats([weight])[0])):
            raise ValueError(f"rewards: the weight of {name!r} must be a finite number, got {_short(weight)}")
    return rewards


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _token_ids(values: object, name: str) -> np.ndarray:
    if not isinstance(values, list):
        raise ValueError(f"{name} is missing or not a list")
    if all_are(values, int) and (not values or (min(values) >= 0 and max(values) <= INT32_MAX)):
        return np.array(values, dtype=np.int32)
    place, value = next((i, v) for i, v in enumerate(values) if type(v) is not int or not 0 <= v <= INT32_MAX)
    raise ValueError(f"{name}[{place}] must be an integer in [0, 2^31), got {_short(value)}")


def _loss_mask(values: object, num_tokens: int) -> np.ndarray | None:
    if values is None:
        return None
    if not isinstance(values, list) or not all_are(values, int) or not {0, 1}.issuperset(values):
        raise ValueError("loss_mask must be a list of 0 and 1")
    if len(values) != num_tokens:
        raise ValueError(f"loss_mask has {len(values)} values for {num_tokens} token_ids")
    return np.array(values, dtype=bool)


def _log_probs(record: dict[str, Any], key: str, token_ids: np.ndarray, mask: np.ndarray | None) -> np.ndarray | None:
    values = record.get(key)
    if values is None:
        return None
    if not isinstance(values, list) or not all_are(values, int, float):
        raise ValueError(f"{key} must be a list of numbers")
    if len(values) != len(token_ids):
        raise ValueError(f"{key} has {len(values)} values for {len(token_ids)} token_ids")
    with np.errstate(over="ignore"):
        log_probs = _floats(values).astype(np.float32)
    if not np.isfinite(log_probs).all():
        place = int(np.flatnonzero(~np.isfinite(log_probs))[0])
        raise ValueError(f"{key}[{place}] is not finite: {_short(values[place])}")
    if mask is not None:
        log_probs[~mask] = 0
    return log_probs


def _preference(rows: object, num_responses: int) -> np.ndarray | None:
    if rows is None:
        return None
    expected = f"preference must be a {num_responses}×{num_responses} matrix of finite numbers, one row per response"
    if not isinstance(rows, list) or len(rows) != num_responses:
        raise ValueError(expected)
    for row in rows:
        if not isinstance(row, list) or len(row) != num_responses or not all_are(row, int, float):
            raise ValueError(expected)
    matrix = _floats([value for row in rows for value in row]).reshape(num_responses, num_responses)
    if not np.isfinite(matrix).all():
        raise ValueError(expected)
    return matrix


def all_are(values: list[Any], *kinds: type) -> bool:
    """Whether each value is of one of these very types: true is no number."""
    return set(map(type, values)).issubset(kinds)


def _floats(values: list[int | float]) -> np.ndarray:
    """float64; an integer beyond its range is infinite."""
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:
        return np.array([value if abs(value) < 2**1023 else math.inf for value in values], dtype=np.float64)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
