"""Verifiable rewards: pure functions (prompt, response, answer) -> Score.

All raise ValueError if the prompt's own answer is missing or unusable; a bad response is never an error, just wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

from sppo_megatron.errors import ConfigError
from sppo_megatron.rewards.numbers import Number, last_number, same_number, whole_number
from sppo_megatron.rewards.own_turn import own_turn


class Score(NamedTuple):
    """reward: r(x, y, y*). correct: whether the response is the right answer, None if that isn't defined."""

    reward: float
    correct: bool | None = None


Verifier = Callable[[str, str, str | None], Score]


def exact_match(prompt: str, response: str, answer: str | None) -> Score:
    """1 if the response is the answer, apart from white space around either; else 0."""
    correct = response.strip() == _required(answer).strip()
    return Score(float(correct), correct)


def numeric(prompt: str, response: str, answer: str | None) -> Score:
    """1 if the last number of the response (of its last \\boxed{...}, if that has one) equals the answer's; else 0.

    Integers must be equal; other numbers too, or within a relative 1e-6. See `numbers.last_number` for what is read.
    """
    expected = number_of_answer(_required(answer))
    found = last_number(own_turn(response))
    correct = found is not None and same_number(found, expected)
    return Score(float(correct), correct)


def number_of_answer(answer: str) -> Number:
    """The number that the whole answer is, apart from what stands before `####`. Raises ValueError if it isn't one."""
    number = whole_number(answer.rpartition("####")[2])
    if number is None:
        raise ValueError(
            f"the answer {answer[:80]!r} is as a whole no number (it holds no number, or more): "
            "reward.kind=math_verify compares expressions"
        )
    return number


def character_share(prompt: str, response: str, answer: str | None) -> Score:
    """The share of positions that hold the right character, over the longer of response and answer (both stripped).

    Characters that are missing or too many cost as much as wrong ones. Correct is an exact match.
    """
    response, answer = response.strip(), _required(answer).strip()
    longest = max(len(response), len(answer))
    if longest == 0:
        return Score(1.0, True)
    right = sum(ours == theirs for ours, theirs in zip(response, answer, strict=False))
    return Score(right / longest, response == answer)


def math_verify(prompt: str, response: str, answer: str | None) -> Score:
    """1 if response and answer are mathematically equal (LaTeX or plain expressions), by the package math-verify.

    Some expressions take for ever to simplify: call it where a timeout can end the process.
    Raises ImportError without the package.
    """
    parse, verify = _import_math_verify()
    answer = _required(answer)
    # Bare LaTeX would be read as the last number in it: 3\\sqrt{2} as 3.
    has_marks = "\\boxed" in answer or "$" in answer or "\\(" in answer or "\\[" in answer
    expected = parse(answer if has_marks else f"\\boxed{{{answer}}}", parsing_timeout=None)
    if not expected:
        raise ConfigError(f"math-verify cannot parse the answer {answer[:80]!r}")
    found = parse(own_turn(response), parsing_timeout=None)
    correct = bool(found) and bool(verify(expected, found, timeout_seconds=None))
    return Score(float(correct), correct)


def check_math_verify() -> None:
    """Raises ImportError, naming the extra to install, if math-verify is missing."""
    _import_math_verify()


def _import_math_verify() -> tuple[Callable, Callable]:
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise ConfigError(
            'reward.kind=math_verify needs the package math-verify: pip install "sppo-megatron[math]"'
        ) from error
    # It warns in every call that its own timeouts are off; the worker pool's are on.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return parse, verify


def _required(answer: str | None) -> str:
    if answer is None:
        raise ValueError("this reward needs the prompt's answer, which is missing (data.answer_key)")
    return answer
