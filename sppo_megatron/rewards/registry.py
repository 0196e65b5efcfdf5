"""Every reward by its value of reward.kind: the one place that knows a kind's name.

Light: the checks of a configuration run before what a kind needs is imported; `build` imports it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sppo_megatron.config import Config, RewardConfig
from sppo_megatron.config.named_rewards import check_named_values, named_reward
from sppo_megatron.config.objective import learns_from_humans
from sppo_megatron.config.sources import with_rewards_of_sources
from sppo_megatron.config.urls import url_problems
from sppo_megatron.errors import ConfigError
from sppo_megatron.rewards import verifiers
from sppo_megatron.rewards.kind import RewardKind, verifier_kind
from sppo_megatron.rewards.rule_kinds import RULES
from sppo_megatron.rewards.scorer import Scorer
from sppo_megatron.rewards.text import Decode


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


def _named(reward: RewardConfig, decode: Decode | None) -> Scorer:
    from sppo_megatron.rewards.named import NamedRewards

    return NamedRewards({name: build_scorer(named_reward(reward, name), decode) for name in reward.named}, reward.key)


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


def _check_named(reward: RewardConfig) -> Iterator[str]:
    for name in reward.named:
        problems = list(check_named_values(reward, name))
        if not problems and reward.named[name]["kind"] == reward.kind:
            problems = [f"reward.named.{name}: kind={reward.kind} can't hold itself: choose another kind"]
        yield from problems or (f"reward.named.{name}: {text}" for text in check_scorer(named_reward(reward, name)))


REWARDS: dict[str, RewardKind] = {
    kind.name: kind
    for kind in (
        verifier_kind(verifiers.exact_match),
        verifier_kind(verifiers.numeric, check_answer=verifiers.number_of_answer),
        verifier_kind(verifiers.character_share),
        verifier_kind(
            verifiers.math_verify,
            prepare=verifiers.check_math_verify,
            package="math_verify",
            install="pip install 'sppo-megatron[math]'",
        ),
        RewardKind("function", _function, takes="function", can_be_mixed=True, says_correct=True),
        *RULES,
        RewardKind("reward_model", _reward_model, can_be_mixed=True, check=_check_model),
        RewardKind(
            "judge", _judge, gives_preferences=True, check=_check_judge, servers=lambda reward: reward.judge.urls
        ),
        RewardKind("pairwise_model", _pairwise_model, gives_preferences=True, check=_check_model),
        RewardKind("pairwise_function", _pairwise_function, takes="function", gives_preferences=True),
        RewardKind("mixture", _mixture, takes="mixture", check=_check_mixture),
        RewardKind("named", _named, takes="named", check=_check_named),
        RewardKind("none", _none, for_humans=True),
    )
}
_TAKEN = {  # with what the keys look like
    "function": "module:name",
    "mixture": "[{kind: ..., weight: ...}]",
    "named": "{NAME: {kind: ...}}",
}
_OF_AN_ENTRY = {"kind", "weight", "function"}


def kind_of(reward: RewardConfig) -> RewardKind:
    """Raises ConfigError for a kind that isn't known."""
    if reward.kind not in REWARDS:
        raise ConfigError(f"reward.kind={reward.kind!r} is not known: choose one of {', '.join(REWARDS)}")
    return REWARDS[reward.kind]


def parts_of(reward: RewardConfig) -> list[RewardConfig]:
    """The rewards that score by themselves: those of the mixture's entries, those with a name, or this one."""
    named = [part for name in reward.named for part in parts_of(named_reward(reward, name))]
    return named or [_part(reward, entry) for entry in reward.mixture] or [reward]


def build_scorer(reward: RewardConfig, decode: Decode | None = None) -> Scorer:
    """decode: for prompts and responses that carry no text.

    Doesn't communicate with other ranks. Raises ConfigError with what to change.
    """
    kind = kind_of(reward)
    for problem in _not_together(reward):
        raise ConfigError(problem)
    scorer = kind.build(reward, decode)
    if reward.named or not scorer.gives_preferences:
        return scorer
    if reward.overlap is not None:
        from sppo_megatron.rewards.overlap import Gated, find_overlap

        scorer = Gated(scorer, find_overlap(reward.overlap), decode)
    if reward.opponents is not None:
        from sppo_megatron.rewards.opponents import AgainstPool, read_pool

        scorer = AgainstPool(scorer, read_pool(reward.opponents, decode), decode)
    return scorer


def compares(reward: RewardConfig) -> bool:
    """Whether it compares the responses of a group with each other, and gives no number of each by itself."""
    return kind_of(reward).gives_preferences and reward.opponents is None


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
    reward, objective = with_rewards_of_sources(config.reward, config.data), config.objective
    problems = list(check_scorer(reward))
    yield from problems
    kind = REWARDS.get(reward.kind)
    if kind is None:
        return
    parts = [reward] if problems else parts_of(reward)
    within = next((kind_of(part) for part in parts if compares(part)), None)
    if within and objective.reward != "win_rate":
        yield (
            f"reward.kind={within.name} gives preferences between responses: set objective.reward=win_rate, "
            "as objective=sppo_win_rate does"
        )
    for key in ("overlap", "opponents"):
        if getattr(reward, key) is not None and not any(kind_of(part).gives_preferences for part in parts):
            yield (
                f"reward.{key} is for rewards that compare responses, and reward.kind={kind.name} doesn't: "
                "set it to null"
            )
    if kind.for_humans and not learns_from_humans(objective):
        yield f"reward.kind={kind.name} is for objective.pairwise=spin, whose winners are given: choose a reward"
    k = config.rollout.num_samples_per_prompt
    if within and generates and k < 2:
        yield f"reward.kind={within.name} compares responses: rollout.num_samples_per_prompt={k} must be at least 2"
    if objective.length_reward_weight and not problems and not _says_correct(reward):
        yield (
            f"objective.length_reward_weight={objective.length_reward_weight:g} needs to know which responses are "
            f"correct, and reward.kind={kind.name} doesn't say: set it to 0"
        )


def _says_correct(reward: RewardConfig) -> bool:
    """Of every prompt's responses."""
    if reward.named:
        return all(_says_correct(named_reward(reward, name)) for name in reward.named)
    return any(kind_of(part).says_correct for part in parts_of(reward))


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
    return replace(reward, kind=entry["kind"], function=entry.get("function"), mixture=[], named={})


def _name(reward: RewardConfig) -> str:
    return reward.kind if reward.function is None else reward.function.rpartition(":")[2]
