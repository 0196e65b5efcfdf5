"""Rewards by a rule: the letter of a choice, a pattern, a schema, marks in their order, a length.

Each asks by name for what it reads, as a user's function does; what its rule says is bound to it by the registry.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sppo_megatron.rewards.own_turn import own_turn
from sppo_megatron.rewards.verifiers import Score

_BOXED = re.compile(r"\\boxed\s*\{\s*(?:\\(?:text|mathrm|textbf|mathbf)\s*\{)?\s*\(?([A-Za-z])\)?\s*\}?\s*\}")
# Behind a word that announces it, with what marks and brackets may stand around it
_ANNOUNCED = re.compile(
    r"(?:answer|choice|option)s?\b(?:\s+(?:is|would\s+be|must\s+be))?\s*:?\s*[*_`$\"'\s]*\(?"
    r"(?!(?-i:[aI]\s+[a-z]))([A-Za-z])\)?(?![A-Za-z]|['’][A-Za-z])",  # neither an article nor a pronoun
    re.IGNORECASE,
)
_ALONE = re.compile(r"^[*_`\s]*\(?([A-Za-z])\)?[.):]?[*_`\s]*$")
_LEADING = re.compile(r"^[*_`\s]*\(?([A-Z])(?:\)|\.|:)(?=\s|$)")
_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*?)```", re.DOTALL)


def letter_of_answer(answer: str) -> str:
    """The letter that the whole answer is, as A, (b) or C. stands. Raises ValueError if it isn't one."""
    found = _ALONE.match(answer)
    if found is None:
        raise ValueError(f"the answer {answer[:80]!r} is no letter of a choice")
    return found[1].upper()


def choice(response: str, answer: str) -> Score:
    """1 if the response chooses the answer's letter, else 0.

    Read is its last \\boxed{B}, else the letter behind the last "answer", "option" or "choice", else a letter that
    begins the first line or is the last line alone. A response that names two is judged by what it says last.
    """
    expected = letter_of_answer(answer)
    found = _chosen(own_turn(response))
    return Score(float(found == expected), found == expected)


def _chosen(text: str) -> str | None:
    for mark in (_BOXED, _ANNOUNCED):
        if letters := mark.findall(text):
            return letters[-1].upper()
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    found = _ALONE.match(lines[-1]) or _LEADING.match(lines[0])
    return None if found is None else found[1].upper()


def regex(response: str, answer: str | None, *, pattern: str) -> Score:
    """1 if the pattern is found in the response, else 0. `.` is also a new line.

    A group named `answer` must besides, where the pattern is found last, hold the prompt's answer, apart from white
    space around either.
    """
    found = list(re.finditer(pattern, own_turn(response), re.DOTALL))
    correct = bool(found)
    if found and "answer" in found[-1].groupdict():
        if answer is None:
            raise ValueError("the pattern has a group `answer`, and the prompt no answer (data.answer_key)")
        correct = (found[-1]["answer"] or "").strip() == answer.strip()
    return Score(float(correct), correct)


def json_schema(response: str, *, schema: Mapping[str, Any]) -> Score:
    """1 if the response is one JSON value that the schema takes, alone or in its only fenced block; else 0."""
    from jsonschema import Draft202012Validator

    fenced = _FENCED.findall(response)
    try:
        value = json.loads(fenced[0] if len(fenced) == 1 else response)
    except (ValueError, RecursionError):
        return Score(0.0, False)
    correct = Draft202012Validator(schema).is_valid(value)
    return Score(float(correct), correct)


def tags(response: str, *, names: Sequence[str]) -> Score:
    """1 if the response is <a>...</a> <b>...</b> for these names in this order, each once, and nothing else; else 0."""
    marks = [mark for name in names for mark in (f"<{name}>", f"</{name}>")]
    body = r"\s*".join(f"<{re.escape(name)}>.*?</{re.escape(name)}>" for name in names)
    once = all(response.count(mark) == 1 for mark in marks)
    return Score(float(once and re.fullmatch(rf"\s*{body}\s*", response, re.DOTALL) is not None))


def length(loss_mask: np.ndarray, *, at_least: int, at_most: int | None, margin: int) -> Score:
    """1 for a response of at_least to at_most tokens that the policy sampled (at_most None: without an end).

    Outside it falls in a straight line to 0 at `margin` tokens beyond either, at once if that is 0.
    """
    count = int(loss_mask.sum())
    beyond = max(at_least - count, 0 if at_most is None else count - at_most, 0)
    return Score(1.0 if not beyond else max(0.0, 1.0 - beyond / margin) if margin else 0.0)
