"""What runs in a worker process. Only plain data cross the pipe, so nothing a reward does can break it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sppo_megatron.cluster.helper_processes import die_with_parent
from sppo_megatron.rewards.function import PAIR_ARGUMENTS, load_function, to_probability, to_score
from sppo_megatron.rewards.verifiers import Score

MAX_ERROR_CHARACTERS = 500

Reward = Callable[[Sequence[Any], Mapping[str, Any]], Score]  # arguments by place, and by name

_reward: Reward | None = None


def start(load: Callable[[], Reward]) -> None:
    """Loads the reward before the first call, so that imports don't count against its timeout."""
    global _reward
    die_with_parent()  # a reward that never returns would outlive a trainer that was killed
    _reward = load()


def response_function(path: str) -> Reward:
    """The user's function of one response."""
    function = load_function(path)
    return lambda positional, named: to_score(function(positional, named))


def pairwise_function(path: str) -> Reward:
    """The user's function of two; the score's reward is the probability that the first wins."""
    function = load_function(path, PAIR_ARGUMENTS)
    return lambda positional, named: Score(to_probability(function(positional, named)))


def verifier_call(verifier: Callable[..., Score], prepare: Callable[[], object]) -> Reward:
    """A function of ours; prepare: its imports."""
    prepare()
    return lambda positional, named: verifier(*positional, **named)


def ready() -> bool:
    """True as soon as a worker has started."""
    return _reward is not None


def call(positional: Sequence[Any], named: Mapping[str, Any]) -> tuple[float | None, bool | None, str | None]:
    """(reward, correct, None), or (None, None, error) if the reward raised or returned something else.

    The arguments are those of the function.
    """
    assert _reward is not None
    try:
        score = _reward(positional, named)
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
