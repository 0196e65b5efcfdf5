"""What runs in a worker process. Only plain text and numbers cross the pipe, so nothing a reward does can break it."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from typing import Any

from sppo_megatron.reward.function import load_function, to_score
from sppo_megatron.reward.verifiers import VERIFIERS, check_math_verify

MAX_ERROR_CHARACTERS = 500

_reward: Callable[..., Any] | None = None


def start(kind: str, function: str | None) -> None:
    """Loads the reward before the first call, so that imports don't count against its timeout."""
    global _reward
    threading.Thread(target=_die_with_parent, daemon=True).start()
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


def _die_with_parent() -> None:
    """A reward that never returns would otherwise outlive a trainer that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
