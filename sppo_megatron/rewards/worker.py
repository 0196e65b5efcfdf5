"""What runs in a worker process. Only plain data cross the pipe, so nothing a reward does can break it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sppo_megatron.cluster.helper_processes import die_with_parent
from sppo_megatron.rewards.function import PAIR_ARGUMENTS, load_function, to_probability, to_score
from sppo_megatron.rewards.verifiers import VERIFIERS, Score, check_math_verify

MAX_ERROR_CHARACTERS = 500

_reward: Callable[[Sequence[Any], Mapping[str, Any]], Any] | None = None
_read: Callable[[Any], Score] = to_score  # what _reward returned


def start(kind: str, function: str | None) -> None:
    """Loads the reward before the first call, so that imports don't count against its timeout."""
    global _reward, _read
    die_with_parent()  # a reward that never returns would outlive a trainer that was killed
    if kind == "function":
        assert function is not None
        _reward = load_function(function)
    elif kind == "pairwise_function":
        assert function is not None
        _reward, _read = load_function(function, PAIR_ARGUMENTS), lambda result: Score(to_probability(result))
    else:
        verifier = VERIFIERS[kind]
        _reward = lambda positional, named: verifier(*positional, **named)
        if kind == "math_verify":
            check_math_verify()


def ready() -> bool:
    """True as soon as a worker has started."""
    return _reward is not None


def call(positional: Sequence[Any], named: Mapping[str, Any]) -> tuple[float | None, bool | None, str | None]:
    """(reward, correct, None), or (None, None, error) if the reward raised or returned something else.

    The arguments are those of the function. A pairwise function's reward is the probability that the first wins.
    """
    assert _reward is not None
    try:
        score = _read(_reward(positional, named))
    except BaseException as error:  # sys.exit() and KeyboardInterrupt are the response's problem too
        return None, None, describe(error)
    return score.reward, score.correct, None


def describe(error: BaseException) -> str:
    """One line for a file: without lone surrogates, as a program's output that isn't UTF-8 leaves them."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # its __str__ raises
        text = type(error).__name__
    return text[:MAX_ERROR_CHARACTERS].encode("utf-8", "backslashreplace").decode("utf-8")
