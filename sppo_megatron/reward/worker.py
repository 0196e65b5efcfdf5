"""What runs in a worker process. Only plain text and numbers cross the pipe, so nothing a reward does can break it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sppo_megatron.processes import die_with_parent
from sppo_megatron.reward.function import load_function, to_score
from sppo_megatron.reward.verifiers import VERIFIERS, check_math_verify

MAX_ERROR_CHARACTERS = 500

_reward: Callable[..., Any] | None = None


def start(kind: str, function: str | None) -> None:
    """Loads the reward before the first call, so that imports don't count against its timeout."""
    global _reward
    die_with_parent()  # a reward that never returns would outlive a trainer that was killed
    if kind == "function":
        assert function is not None
        _reward = load_function(function)
        return
    _reward = VERIFIERS[kind]
    if kind == "math_verify":
        check_math_verify()


def ready() -> bool:
    """True as soon as a worker has started."""
    return _reward is not None


def call(prompt: str, response: str, answer: str | None) -> tuple[float | None, bool | None, str | None]:
    """(reward, correct, None), or (None, None, error) if the reward raised or returned something else."""
    assert _reward is not None
    try:
        score = to_score(_reward(prompt, response, answer))
    except BaseException as error:  # sys.exit() and KeyboardInterrupt are the response's problem too
        return None, None, describe(error)
    return score.reward, score.correct, None


def describe(error: BaseException) -> str:
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # its __str__ raises
        text = type(error).__name__
    return text[:MAX_ERROR_CHARACTERS]
