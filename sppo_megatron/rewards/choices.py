"""Which of the named rewards scores a prompt's responses: what its record or its source says, checked before a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache

from sppo_megatron.config import Config, RewardConfig
from sppo_megatron.config.named_rewards import choice_of, named_reward
from sppo_megatron.config.sources import Source, evaluation_sources, training_sources, with_rewards_of_sources
from sppo_megatron.rewards.named import recorded_choice
from sppo_megatron.rewards.registry import check_answer, check_scorer, compares, kind_of, parts_of
from sppo_megatron.types import Prompt

KEY = "reward.key"


def check_choices(config: Config, generates: bool) -> Iterator[str]:
    """What is wrong with the rewards that sources choose, one message each. generates: whether
    training prompts are answered."""
    sources = [*(training_sources(config.data) if generates else []), *evaluation_sources(config.data)]
    reward = with_rewards_of_sources(config.reward, config.data)
    if not reward.named:
        for source in sources:
            if source.reward is not None:
                yield f"{source.key}: reward names one of reward.named: set reward.kind=named and reward.named"
        return
    if any(check_scorer(reward)):
        return  # which `check_reward` tells
    in_place = [source.name for source in sources if isinstance(source.reward, Mapping)]
    for name, count in Counter([*in_place, *config.reward.named]).items():
        if count > 1:
            yield f"reward.named and data sources define the reward {name} {count} times: define it once, and name it"
    for source in sources:
        if source.reward is None:
            if reward.key is None:
                yield f"{source.key} says nothing of its reward: give the source reward: NAME, or set reward.key"
            continue
        with suppress(ValueError):  # which `check_sources` tells
            yield from (f"{source.key}: {problem}" for problem in _problems(reward, _of_source(source)))


def prompt_reader(reward: RewardConfig, source: Source | None = None) -> Callable[[Prompt], Prompt]:
    """What the reward makes of a prompt of the source: the same with `Prompt.rewards`, if rewards have names.

    The function raises ValueError for a prompt that chooses no reward or one that there isn't, without the answer that
    its reward needs, or with one that no response can be compared with.
    """

    def accept(prompt: Prompt) -> Prompt:
        if prompt.answer is not None:
            check_answer(reward, prompt.answer)
        return prompt

    def choose(prompt: Prompt) -> Prompt:
        chosen = _chosen(reward, source, prompt)
        for part in parts(tuple(chosen.items())):
            if prompt.answer is not None:
                kind_of(part).check_answer(prompt.answer)
            elif kind_of(part).needs_answer:
                raise ValueError(f"no answer (data.answer_key), which its reward {part.kind} compares responses with")
        return replace(prompt, rewards=chosen)

    @cache  # a million prompts make few choices
    def parts(chosen: tuple[tuple[str, float], ...]) -> list[RewardConfig]:
        for problem in _problems(reward, dict(chosen)):
            raise ValueError(f"{reward.key!r} ({KEY}): {problem}")
        return [part for name, _ in chosen for part in parts_of(named_reward(reward, name))]

    return choose if reward.named else accept


def _chosen(reward: RewardConfig, source: Source | None, prompt: Prompt) -> dict[str, float]:
    """What the record says, else what its source does. Raises ValueError for no choice."""
    try:
        chosen = recorded_choice(prompt, reward.key) or prompt.rewards
    except ValueError as error:
        raise ValueError(f"{reward.key!r} ({KEY}): {error}") from None
    if chosen:
        return dict(chosen)
    if source is None or source.reward is None:
        raise ValueError(f"no key {reward.key!r} ({KEY}); the keys beside prompt and answer are {sorted(prompt.extra)}")
    return _of_source(source)


def _of_source(source: Source) -> dict[str, float]:
    """Of a source that chooses. A reward of its own has its name."""
    return {str(source.name): 1.0} if isinstance(source.reward, Mapping) else choice_of(source.reward)


def _problems(reward: RewardConfig, chosen: Mapping[str, float]) -> Iterator[str]:
    if unknown := [name for name in chosen if name not in reward.named]:
        yield f"reward.named has no {', '.join(unknown)}: choose of {', '.join(reward.named)}"
        return
    compare = [name for name in chosen if _compares(reward, name)]
    if compare and (len(chosen) > 1 or chosen[compare[0]] != 1.0):
        yield f"{compare[0]} compares responses, which can't be weighted or added to others"


def _compares(reward: RewardConfig, name: str) -> bool:
    return any(compares(part) for part in parts_of(named_reward(reward, name)))
