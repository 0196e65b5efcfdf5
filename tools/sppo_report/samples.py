"""The responses that are shown of each iteration, ready for the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from sppo_report.responses import (
    IterationRows,
    ResponseRow,
    group_scores,
    log_prob_differences,
    numbers,
    read_records,
    read_rows,
    win_rates,
)
from sppo_report.run_folder import Run
from sppo_report.selection import choose_iterations, choose_responses

MAX_TEXT = 4000  # characters of a prompt, an answer, an error, or a response without token texts


@dataclass(frozen=True)
class SampleLimits:
    """iterations: of a run. responses: of an iteration. tokens: of a response, two thirds of them from its start."""

    iterations: int = 40
    responses: int = 6
    tokens: int = 800


def shown_iterations(
    run: Run, limits: SampleLimits, token_texts: Callable[[Sequence[object]], list[str]] | None
) -> Iterator[dict[str, Any]]:
    """One JSON object for each iteration that is shown. Broken lines are added to the run's problems."""
    for iteration in choose_iterations(list(run.rollout_files), limits.iterations):
        path = run.rollout_files[iteration]
        found = read_rows(path)
        run.problems += found.problems
        chosen = choose_responses(found.rows, limits.responses)
        records = dict(read_records(path, {row.line for row, _ in chosen}))
        yield {
            "iteration": iteration,
            "file": path.name,
            **_totals(found),
            "samples": [_sample(records[row.line], row, why, limits, token_texts) for row, why in chosen],
        }


def _totals(found: IterationRows) -> dict[str, Any]:
    scores = [row.score for row in found.rows if row.score is not None]
    return {
        "groups": found.num_groups,
        "responses": len(found.rows),
        "score_mean": fmean(scores) if scores else None,
        "truncated": sum(row.is_truncated for row in found.rows),
        "failed": sum(row.is_failed for row in found.rows),
        "degenerate": found.degenerate,
    }


def _sample(
    record: Mapping[str, Any],
    row: ResponseRow,
    why: Sequence[str],
    limits: SampleLimits,
    token_texts: Callable[[Sequence[object]], list[str]] | None,
) -> dict[str, Any]:
    """JSON of one response. Log-probs in nats; `left_out` tokens are missing after the first `head`.

    sampled: of each token, whether the policy sampled it; None if it sampled all of them.
    """
    response = record["responses"][row.place]
    ids = response["token_ids"]
    head, tail = _ends(len(ids), limits.tokens)
    log_probs = numbers(response.get("rollout_log_probs"), len(ids))
    differences = log_prob_differences(response)
    sampled = numbers(response.get("loss_mask"), len(ids))

    def shown(values: Sequence[Any]) -> list[Any]:
        return [*values[:head], *values[len(values) - tail :]] if tail else list(values[:head])

    return {
        "why": list(why),
        "group": row.line,
        "place": row.place + 1,
        "prompt": _prompt(record, token_texts),
        "messages": _messages(record),
        "answer": _text(record.get("answer")),
        "text": _text(response.get("text")),
        "scores": group_scores(record),
        "win_rates": win_rates(record),
        "degenerate": row.is_degenerate,
        "finish_reason": _text(response.get("finish_reason")),
        "correct": response.get("correct") if isinstance(response.get("correct"), bool) else None,
        "error": _text(response.get("error")),
        "policy_version": _text(response.get("policy_version")),
        "mismatch": row.mismatch,
        "mean_log_prob": row.mean_log_prob,
        "length": len(ids),
        "head": head,
        "left_out": len(ids) - head - tail,
        "token_ids": [str(token_id) for token_id in shown(ids)],
        "token_texts": None if token_texts is None else shown(token_texts(ids)),
        "log_probs": None if log_probs is None else [_short(value) for value in shown(log_probs)],
        "differences": None if differences is None else [_short(value) for value in shown(differences)],
        "sampled": None if sampled is None else [bool(value) for value in shown(sampled)],
    }


def _ends(count: int, limit: int) -> tuple[int, int]:
    """How many tokens are shown of the start and of the end."""
    if count <= limit:
        return count, 0
    return limit - limit // 3, limit // 3


def _prompt(record: Mapping[str, Any], token_texts: Callable[[Sequence[object]], list[str]] | None) -> str | None:
    ids = record.get("prompt_token_ids")
    if record.get("prompt") is None and isinstance(ids, list):
        return _text("".join(token_texts(ids)) if token_texts else f"{len(ids)} tokens: {' '.join(map(str, ids))}")
    return _text(record.get("prompt"))


def _messages(record: Mapping[str, Any]) -> list[dict[str, str | None]] | None:
    """[{role, text}, ...] of a conversation, None if the record has none. What is no text is shown as JSON."""
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        return None
    return [{"role": _text(message.get("role")), "text": _text(_content(message))} for message in messages]


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    parts = content if isinstance(content, list) else [] if content is None else [content]
    parts = [part.get("text", part) if isinstance(part, dict) else part for part in parts]
    rest = {name: value for name, value in message.items() if name not in ("role", "content") and value}
    parts += [rest] if rest else []
    return "\n".join(part if isinstance(part, str) else json.dumps(part, ensure_ascii=False) for part in parts)


def _text(value: object) -> str | None:
    """The value as text of bounded length, None if there is none."""
    if value is None:
        return None
    text = str(value)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … and {len(text) - MAX_TEXT} more characters"


def _short(value: float) -> float:
    return float(f"{value:.4g}")
