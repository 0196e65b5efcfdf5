"""One pass over an iteration's rollout file: a few numbers of each response, and what the groups look like."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from sppo_megatron.errors import ConfigError
from sppo_report.run_folder import BINARY, broken_lines, finite, whole_lines


@dataclass(frozen=True)
class ResponseRow:
    """What decides whether a response is shown. line: of its group in the file, from 1. place: within the group.

    score: its reward, or its mean row of the preference matrix, None without either. mismatch: |Σ(old − rollout)|
    nats, None without both log-probs. mean_log_prob: of the rollout, nats per token. content: equal for two responses
    of a group with the same tokens.
    """

    line: int
    place: int
    length: int
    content: int
    score: float | None
    mismatch: float | None
    mean_log_prob: float | None
    is_truncated: bool
    is_failed: bool
    is_degenerate: bool


@dataclass
class IterationRows:
    """degenerate: (score that all responses of a group share, number of such groups), the most frequent first."""

    rows: list[ResponseRow] = field(default_factory=list)
    num_groups: int = 0
    degenerate: list[tuple[float, int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_rows(path: Path) -> IterationRows:
    """Streams the file, so that it may be larger than memory. Lines that hold no group are named in `problems`."""
    result = IterationRows()
    broken: list[int] = []
    shared: Counter[float] = Counter()
    for number, record in _records(path, result.problems):
        rows = group_rows(number, record)
        if rows is None:
            broken.append(number)
            continue
        result.num_groups += 1
        result.rows += rows
        if rows and rows[0].is_degenerate and rows[0].score is not None:
            shared[rows[0].score] += 1
    result.degenerate = shared.most_common()
    result.problems += broken_lines(path.name, broken, "no list of responses with token_ids")
    return result


def read_records(path: Path, lines: set[int]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line number, record) of these lines, in order; the others are not parsed."""
    if path.suffix == BINARY:
        from sppo_megatron.data.rollout_file import read_groups
        from sppo_megatron.data.rollout_record import to_record

        for number in sorted(lines):
            yield number, to_record(read_groups(path, number - 1, number)[0])
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if number in lines:
                yield number, json.loads(line)


def _records(path: Path, problems: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line number, record); of a binary file, (group number, record). What can't be read is added to `problems`."""
    if path.suffix != BINARY:
        yield from whole_lines(path, problems)
        return
    from sppo_megatron.data.rollout_file import iterate_groups
    from sppo_megatron.data.rollout_record import to_record

    try:
        for number, group in enumerate(iterate_groups(path), start=1):
            yield number, to_record(group)
    except ConfigError as error:
        problems.append(f"{path.name}: {str(error).removeprefix(f'{path}: ')}; what follows is left out")


def group_rows(line: int, record: Mapping[str, Any]) -> list[ResponseRow] | None:
    """The rows of one group, None if the record isn't one."""
    responses = record.get("responses")
    if not isinstance(responses, list) or not all(
        isinstance(response, dict) and isinstance(response.get("token_ids"), list) for response in responses
    ):
        return None
    scores = group_scores(record)
    is_degenerate = len(scores) > 1 and None not in scores and len(set(scores)) == 1
    return [
        _row(line, place, response, score, is_degenerate)
        for place, (response, score) in enumerate(zip(responses, scores, strict=True))
    ]


def group_scores(record: Mapping[str, Any]) -> list[float | None]:
    """The responses' rewards; if one has none, their win rates."""
    rewards = [finite(response.get("reward")) for response in record["responses"]]
    return rewards if None not in rewards else win_rates(record) or rewards


def win_rates(record: Mapping[str, Any]) -> list[float | None] | None:
    """The means of the rows of the preference matrix, None if the group has none."""
    count, preference = len(record["responses"]), record.get("preference")
    if not isinstance(preference, list) or len(preference) != count:
        return None
    rows = [numbers(row, count) for row in preference]
    return [fmean(row) if row else None for row in rows]


def numbers(values: object, count: int) -> list[float] | None:
    """The values as floats if they are `count` finite numbers, else None."""
    if not isinstance(values, list) or len(values) != count:
        return None
    found = [number for value in values if (number := finite(value)) is not None]
    return found if len(found) == count else None


def log_prob_differences(response: Mapping[str, Any]) -> list[float] | None:
    """old − rollout log-prob of each token, nats; None if one of them is missing."""
    count = len(response["token_ids"])
    old, rollout = numbers(response.get("old_log_probs"), count), numbers(response.get("rollout_log_probs"), count)
    return None if old is None or rollout is None else [a - b for a, b in zip(old, rollout, strict=True)]


def _row(line: int, place: int, response: Mapping[str, Any], score: float | None, is_degenerate: bool) -> ResponseRow:
    ids: Sequence[Any] = response["token_ids"]
    log_probs, differences = numbers(response.get("rollout_log_probs"), len(ids)), log_prob_differences(response)
    return ResponseRow(
        line=line,
        place=place,
        length=len(ids),
        content=hash((line, repr(ids))),
        score=score,
        mismatch=None if differences is None else abs(sum(differences)),
        mean_log_prob=fmean(log_probs) if log_probs else None,
        is_truncated=response.get("finish_reason") == "length",
        is_failed=response.get("error") is not None,
        is_degenerate=is_degenerate,
    )
