"""Every reward by its value of reward.kind: the one place that knows a kind's name.

Light: the checks of a configuration run before what a kind needs is imported; `build` imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sppo_megatron.config import Config, RewardConfig
from sppo_megatron.config.objective import learns_from_humans
from sppo_megatron.config.urls import url_problems
from sppo_megatron.errors import ConfigError
from sppo_megatron.rewards import verifiers
from sppo_megatron.rewards.scorer import Scorer
from sppo_megatron.rewards.text import Decode
from sppo_megatron.rewards.verifiers import Verifier

Build = Callable[[RewardConfig, Decode | None], Scorer]


@dataclass(frozen=True)
class RewardKind:
    """One value of reward.kind, or of an entry's kind.

    build: raises ConfigError, saying what to change. takes: the key of the reward that belongs to this kind, function
    or mixture: it must be given, and to kinds that don't take it can't.
    gives_preferences: it compares responses; else it scores each by itself. can_be_mixed: its rewards can be added to
    others. says_correct: it knows which responses are right. for_humans: it is of use only if human responses win.
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
    for_humans: bool = False
    check: Callable[[RewardConfig], Iterator[str]] = lambda reward: iter(())
    check_answer: Callable[[str], object] = lambda answer: None
    servers: Callable[[RewardConfig], Sequence[str]] = lambda reward: ()
    package: str | None = None
    install: str = ""


def _verifier(verifier: Verifier, prepare: Callable[[], object] | None = None, **more: Any) -> RewardKind:
    """prepare: given for one that may hang or die, which runs in worker processes: what they call first."""

    def build(reward: RewardConfig, decode: Decode | None) -> Scorer:
        from sppo_megatron.rewards.function_scorers import RewardScorer

        return RewardScorer(reward, decode, verifier, prepare)

    return RewardKind(verifier.__name__, build, can_be_mixed=True, says_correct=True, **more)


def _function(reward: RewardConfig, decode: Decode | None) -> Scorer:
    from sppo_megatron.rewards.function_scorers import RewardScorer

    return RewardScorer(reward, decode)


def _pairwise_function(reward: RewardConfig, decode: Decode | None) -> Scorer:
    from sppo_megatron.rewards.function_scorers import PairwiseFunction

    return PairwiseFunction(reward, decode)


def _reward_model(reward: RewardConfig, decode: Decode | None) -> Scorer:
    from sppo_megatron.rewards.model_scorers import RewardModel

    return RewardModel(reward, decode)


def _pairwise_model(reward: RewardConfig, decode: Decode | None) -> Scorer:
    from sppo_megatron.rewards.model_scorers import PairwiseModel

    return PairwiseModel(reward, decode)


def _judge(reward: RewardConfig, decode: Decode | None) -> Scorer:
    from sppo_megatron.rewards.judge import Judge

    return Judge(reward.judge, decode)


def _mixture(reward: RewardConfig, decode: Decode | None) -> Scorer:
    from sppo_megatron.rewards.mixture import Component, Mixture

    parts = [(part, float(entry["weight"])) for part, entry in zip(parts_of(reward), reward.mixture, strict=True)]
    return Mixture([Component(_name(part), weight, build_scorer(part, decode)) for part, weight in parts])


def _none(reward: RewardConfig, decode: Decode | None) -> Scorer:
    from sppo_megatron.rewards.mixture import NoReward

    return NoReward()


def _check_model(reward: RewardConfig) -> Iterator[str]:
    if reward.model.path is None:
        yield "a reward model needs reward.model.path: a local folder or hub id in Hugging Face format"


def _check_judge(reward: RewardConfig) -> Iterator[str]:
    urls = reward.judge.urls
    if not urls:
        yield "reward.kind=judge needs reward.judge.urls=[http://host:port, ...] of an OpenAI-compatible server"
    yield from url_problems(urls, "reward.judge")


def _check_mixture(reward: RewardConfig) -> Iterator[str]:
    for place, entry in enumerate(reward.mixture):
        yield from (f"reward.mixture[{place}]: {problem}" for problem in _entry_problems(reward, entry))


REWARDS: dict[str, RewardKind] = {
    kind.name: kind
    for kind in (
        _verifier(verifiers.exact_match),
        _verifier(verifiers.numeric, check_answer=verifiers.number_of_answer),
        _verifier(verifiers.character_share),
        _verifier(
            verifiers.math_verify,
            prepare=verifiers.check_math_verify,
            package="math_verify",
            install="pip install 'sppo-megatron[math]'",
        ),
        RewardKind("function", _function, takes="function", can_be_mixed=True, says_correct=True),
        RewardKind("reward_model", _reward_model, can_be_mixed=True, check=_check_model),
        RewardKind(
            "judge", _judge, gives_preferences=True, check=_check_judge, servers=lambda reward: reward.judge.urls
        ),
        RewardKind("pairwise_model", _pairwise_model, gives_preferences=True, check=_check_model),
        RewardKind("pairwise_function", _pairwise_function, takes="function", gives_preferences=True),
        RewardKind("mixture", _mixture, takes="mixture", check=_check_mixture),
        RewardKind("none", _none, for_humans=True),
    )
}
_TAKEN = {"function": "module:name", "mixture": "[{kind: ..., weight: ...}]"}  # with what the keys look like
_OF_AN_ENTRY = {"kind", "weight", "function"}


def kind_of(reward: RewardConfig) -> RewardKind:
    """Raises ConfigError for a kind that isn't known."""
    if reward.kind not in REWARDS:
        raise ConfigError(f"reward.kind={reward.kind!r} is not known: choose one of {', '.join(REWARDS)}")
    return REWARDS[reward.kind]


def parts_of(reward: RewardConfig) -> list[RewardConfig]:
    """The rewards that score by themselves: those of the mixture's entries, or this one."""
    return [_part(reward, entry) for entry in reward.mixture] or [reward]


def build_scorer(reward: RewardConfig, decode: Decode | None = None) -> Scorer:
    """decode: for prompts and responses that carry no text.

    Doesn't communicate with other ranks. Raises ConfigError with what to change.
    """
    kind = kind_of(reward)
    for problem in _not_together(reward):
        raise ConfigError(problem)
    return kind.build(reward, decode)


def check_answer(reward: RewardConfig, answer: str) -> None:
    """Raises ValueError for the answer of a prompt that the reward can't compare responses with."""
    for part in parts_of(reward):
        kind_of(part).check_answer(answer)


def check_scorer(reward: RewardConfig) -> Iterator[str]:
    """What is wrong with the reward alone, one message each."""
    try:
        kind = kind_of(reward)
    except ConfigError as error:
        yield str(error)
        return
    yield from _not_together(reward)
    yield from kind.check(reward)


def check_reward(config: Config, generates: bool) -> Iterator[str]:
    """What is wrong with the reward, also together with the objective and the rollout.

    generates: whether responses are sampled; False if stored ones are read.
    """
    reward, objective, problems = config.reward, config.objective, list(check_scorer(config.reward))
    yield from problems
    kind = REWARDS.get(reward.kind)
    if kind is None:
        return
    if kind.gives_preferences and objective.reward != "win_rate":
        yield (
            f"reward.kind={kind.name} gives preferences between responses: set objective.reward=win_rate, "
            "as objective=sppo_win_rate does"
        )
    if kind.for_humans and not learns_from_humans(objective):
        yield f"reward.kind={kind.name} is for objective.pairwise=spin, whose winners are given: choose a reward"
    k = config.rollout.num_samples_per_prompt
    if kind.gives_preferences and generates and k < 2:
        yield f"reward.kind={kind.name} compares responses: rollout.num_samples_per_prompt={k} must be at least 2"
    if objective.length_reward_weight and not problems and not any(kind_of(p).says_correct for p in parts_of(reward)):
        yield (
            f"objective.length_reward_weight={objective.length_reward_weight:g} needs to know which responses are "
            f"correct, and reward.kind={kind.name} doesn't say: set it to 0"
        )


def _not_together(reward: RewardConfig) -> Iterator[str]:
    """Keys that are given without their kind, or missing beside it."""
    for key, example in _TAKEN.items():
        if (REWARDS[reward.kind].takes == key) != bool(getattr(reward, key)):
            able = " or ".join(kind.name for kind in REWARDS.values() if kind.takes == key)
            yield f"reward.kind={able} and reward.{key}={example} belong together: give both or neither"


def _entry_problems(reward: RewardConfig, entry: dict[str, Any]) -> Iterator[str]:
    kind, weight = REWARDS.get(str(entry.get("kind"))), entry.get("weight")
    able = ", ".join(each.name for each in REWARDS.values() if each.can_be_mixed)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not -float("inf") < weight < float("inf"):
        yield f"weight={weight!r} must be a finite number"
    if unknown := sorted(set(entry) - _OF_AN_ENTRY):
        yield f"{', '.join(unknown)} is not known: an entry has kind, weight and function"
    if kind is not None and kind.gives_preferences:
        yield f"{kind.name} gives preferences, which can't be added to rewards: mix only {able}"
    elif kind is None or not kind.can_be_mixed:
        yield f"kind={entry.get('kind')!r} is not known: choose one of {able}"
    else:
        if (kind.takes == "function") != (entry.get("function") is not None):
            yield "kind: function and function: module:name belong together: give both or neither"
        yield from kind.check(_part(reward, entry))


def _part(reward: RewardConfig, entry: dict[str, Any]) -> RewardConfig:
    """An entry's kind and function; every other key is the reward's own."""
    return replace(reward, kind=entry["kind"], function=entry.get("function"), mixture=[])


def _name(reward: RewardConfig) -> str:
    return reward.kind if reward.function is None else reward.function.rpartition(":")[2]
