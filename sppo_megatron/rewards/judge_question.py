"""What a judge is asked, and how its answer is read."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

from sppo_megatron.config import JudgeConfig

TOP_LOGPROBS = 20  # the most that vLLM's server gives by default
_LETTERS = {"A": 1.0, "B": 0.0, "tie": 0.5}


@dataclass(frozen=True, slots=True)
class Reading:
    """first_wins: P(the first response is better). letter_mass: P(A) + P(B), None if there are no log-probs."""

    first_wins: float
    letter_mass: float | None = None


def request_body(text: str, model: str, judge: JudgeConfig) -> dict[str, Any]:
    """The body of a chat completion that asks for one letter."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": judge.max_tokens,
        "temperature": 0.0,
    }
    if judge.logprobs:
        body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
    return body | judge.request


def question_key(body: dict[str, Any]) -> str:
    """sha256 of all that the answer depends on: model, template, texts and settings. Hexadecimal, 64 characters."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def read_answer(reply: Any) -> Reading:
    """P(first wins) from the log-probs of A and B as the first token, over the two alone; else from the letter.

    The letter is the whole answer, apart from white space around it: A, B or tie. Tokens that are a letter with
    white space count for it. Raises ValueError on anything else.
    """
    try:
        choice = reply["choices"][0]
        text = (choice["message"]["content"] or "").strip()
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"the judge's reply is no chat completion: {str(reply)[:200]}") from error
    if text == "tie":
        return Reading(0.5)
    a, b = _letter_probabilities(choice)
    if a + b > 0:
        return Reading(a / (a + b), a + b)
    if text not in _LETTERS:
        raise ValueError(f"the judge's answer is neither A, B nor tie: {text[:80]!r}")
    return Reading(_LETTERS[text])


def used_tokens(reply: Any) -> tuple[int, int]:
    """Tokens of the prompt and of the answer as the endpoint counts them, 0 if it doesn't say."""
    usage = reply.get("usage") if isinstance(reply, dict) else None
    counts = usage if isinstance(usage, dict) else {}
    prompt, completion = counts.get("prompt_tokens"), counts.get("completion_tokens")
    return prompt if isinstance(prompt, int) else 0, completion if isinstance(completion, int) else 0


def _letter_probabilities(choice: dict[str, Any]) -> tuple[float, float]:
    """Of A and of B as the first token; 0 if the endpoint doesn't list it."""
    try:
        entries = choice["logprobs"]["content"][0]["top_logprobs"]
        listed = [(entry["token"].strip(), math.exp(entry["logprob"])) for entry in entries]
    except (KeyError, IndexError, TypeError, AttributeError, OverflowError):
        return 0.0, 0.0
    a, b = (math.fsum(p for token, p in listed if token == letter) for letter in "AB")
    return (a, b) if math.isfinite(a + b) else (0.0, 0.0)
