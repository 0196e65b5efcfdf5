"""Rewards by name: each prompt's responses are scored by what the prompt names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sppo_megatron.config.named_rewards import choice_of
from sppo_megatron.data.records import MISSING, column
from sppo_megatron.errors import ConfigError
from sppo_megatron.rewards.mixture import weighted_sum
from sppo_megatron.rewards.scorer import Outcome, Scorer, total, with_rewards
from sppo_megatron.types import Group, Prompt


def recorded_choice(prompt: Prompt, key: str | None) -> dict[str, float] | None:
    """The names and weights that the record has in this column (`choice_of`), None if it has none there.

    Raises ValueError for what is no choice.
    """
    stored = MISSING if key is None else column(dict(prompt.extra), key)
    return None if stored is MISSING or stored is None else choice_of(stored)


class NamedRewards:
    """scorers: each built once. key: the column in which a record may name some of them, before `Prompt.rewards`.

    A group's reward is the weighted sum of those that its prompt names, its preference that of the only one, if that
    compares responses.

    metrics: those of the scorers, and of each reward_sum/NAME, its rewards before their weights, added up, over
    reward_count/NAME responses.
    """

    needs_answer = False  # not every prompt: whose reward needs one was refused without

    def __init__(self, scorers: Mapping[str, Scorer], key: str | None = None) -> None:
        self._scorers = dict(scorers)
        self._key = key
        self.metrics: dict[str, float] = {}

    @property
    def gives_preferences(self) -> bool:
        return all(scorer.gives_preferences for scorer in self._scorers.values())

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """A group that names none, or one that there isn't, gets 0 and errors. See `Scorer`."""
        weights = [self._weights(group.prompt) for group in groups]
        parts: list[dict[str, Group]] = [{} for _ in groups]
        metrics = []
        for name, scorer in self._scorers.items():
            places = [place for place in range(len(groups)) if name in weights[place]]
            scored = scorer.score([groups[place] for place in places])
            for place, group in zip(places, scored, strict=True):
                parts[place][name] = group
            metrics += [scorer.metrics, _sums(name, scored)]
        self.metrics = total(metrics)
        return [self._together(*of_group) for of_group in zip(groups, weights, parts, strict=True)]

    def of_prompts(self, prompts: Sequence[Prompt]) -> NamedRewards:
        """With what these prompts name alone. Raises ConfigError if some of it compares responses and other doesn't."""
        names = {name for prompt in prompts for name in self._weights(prompt)}
        chosen = {name: scorer for name, scorer in self._scorers.items() if name in names}
        if len({scorer.gives_preferences for scorer in chosen.values()}) > 1:
            compare = [name for name, scorer in chosen.items() if scorer.gives_preferences]
            raise ConfigError(
                f"an evaluation can't have rewards that compare responses ({', '.join(compare)}) and others that don't "
                f"({', '.join(name for name in chosen if name not in compare)}): give it prompts of one sort"
            )
        return NamedRewards(chosen, self._key)

    def close(self) -> None:
        for scorer in self._scorers.values():
            scorer.close()

    def _weights(self, prompt: Prompt) -> Mapping[str, float]:
        try:
            return recorded_choice(prompt, self._key) or prompt.rewards or {}
        except ValueError:
            return {}

    def _together(self, group: Group, weights: Mapping[str, float], parts: Mapping[str, Group]) -> Group:
        if not weights or set(weights) - set(self._scorers):
            names = ", ".join(weights) or "nothing"
            error = f"the prompt names {names} as its reward, and reward.named has {', '.join(self._scorers)}"
            return with_rewards(group, [Outcome(None, None, error)] * len(group.responses))
        if len(parts) == 1 and next(iter(parts.values())).preference is not None:
            return next(iter(parts.values()))
        return weighted_sum(group, list(weights.items()), [parts[n] for n in weights])


def scorer_of(prompts: Sequence[Prompt], scorer: Scorer) -> Scorer:
    """The scorer; of named rewards those that the prompts name, see `of_prompts`."""
    return scorer.of_prompts(prompts) if prompts and isinstance(scorer, NamedRewards) else scorer


def _sums(name: str, scored: Sequence[Group]) -> dict[str, float]:
    rewards = [float(response.reward or 0.0) for group in scored for response in group.responses]
    return {f"reward_sum/{name}": sum(rewards), f"reward_count/{name}": float(len(rewards))}
