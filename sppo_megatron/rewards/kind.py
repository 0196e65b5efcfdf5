"""What a reward says of itself, so that nobody compares its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sppo_megatron.config import RewardConfig
from sppo_megatron.rewards.scorer import Scorer
from sppo_megatron.rewards.text import Decode
from sppo_megatron.rewards.verifiers import Score

Build = Callable[[RewardConfig, Decode | None], Scorer]


@dataclass(frozen=True)
class RewardKind:
    """One value of reward.kind, or of an entry's kind.

    build: raises ConfigError, saying what to change. takes: the key of the reward that belongs to this kind, function,
    mixture or named: it must be given, and to kinds that don't take it can't.
    gives_preferences: it compares responses; else it scores each by itself. can_be_mixed: its rewards can be added to
    others. says_correct: it knows which responses are right. needs_answer: every prompt must have an answer.
    for_humans: it is of use only if human responses win.
    check: what is wrong with its other keys, one message each.
    check_answer: raises ValueError for the answer of a prompt that no response can be compared with.
    servers: the addresses that it asks. package: what must be installed beside the trainer, with install, the way to
    do so.
    """

    name: str
    build: Build
    takes: str | None = None
    gives_preferences: bool = False
    can_be_mixed: bool = False
    says_correct: bool = False
    needs_answer: bool = False
    for_humans: bool = False
    check: Callable[[RewardConfig], Iterator[str]] = lambda reward: iter(())
    check_answer: Callable[[str], object] = lambda answer: None
    servers: Callable[[RewardConfig], Sequence[str]] = lambda reward: ()
    package: str | None = None
    install: str = ""


def verifier_kind(
    verifier: Callable[..., Score],
    prepare: Callable[[], object] | None = None,
    rule: Callable[[RewardConfig], Mapping[str, Any]] = lambda reward: {},
    **more: Any,
) -> RewardKind:
    """A function of ours. prepare: given for one that may hang or die, which runs in worker processes: what they call
    first. rule: what it takes by name beside what is scored, plain data."""
    needs_answer = more.setdefault("needs_answer", True)

    def build(reward: RewardConfig, decode: Decode | None) -> Scorer:
        from sppo_megatron.rewards.function_scorers import RewardScorer

        return RewardScorer(reward, decode, partial(verifier, **rule(reward)), prepare, needs_answer)

    return RewardKind(verifier.__name__, build, can_be_mixed=True, **{"says_correct": True, **more})
