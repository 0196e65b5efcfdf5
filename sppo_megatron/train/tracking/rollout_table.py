"""A few responses of an iteration as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sppo_megatron.types import Group

NAME = "rollouts"
COLUMNS = ("prompt", "response", "answer", "reward", "tokens", "finish_reason")


def rows_of(groups: Sequence[Group], count: int) -> list[list[Any]]:
    """At most `count` responses, spread over the groups and, from one to the next, over a group's places."""
    rows: list[list[Any]] = []
    filled = [group for group in groups if group.responses]
    for number in range(min(count, len(filled))):
        group = filled[number * len(filled) // min(count, len(filled))]
        response = group.responses[number % len(group.responses)]
        texts = [group.prompt.text, response.text, group.prompt.answer]
        rows.append([*texts, response.reward, response.length, response.finish_reason])
    return rows
