"""Win rates against a pool of answers: of an earlier policy, or a fixed set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sppo_megatron.data.rollout_file import iterate_groups
from sppo_megatron.errors import ConfigError
from sppo_megatron.rewards.scorer import Outcome, Scorer, with_rewards
from sppo_megatron.rewards.text import Decode, text_of
from sppo_megatron.types import Group, Prompt, Response

Pool = Mapping[str, Sequence[Response]]  # by the prompt's text


def read_pool(path: str, decode: Decode | None) -> Pool:
    """The answers of a rollout file; those of a prompt that comes several times stand together. Raises ConfigError."""
    if not Path(path).is_file():
        raise ConfigError(f"reward.opponents={path} does not exist: give a rollout file with answers to the prompts")
    pool: dict[str, list[Response]] = {}
    for group in iterate_groups(path):
        pool.setdefault(_key(group.prompt, decode), []).extend(group.responses)
    return pool


def _key(prompt: Prompt, decode: Decode | None) -> str:
    try:
        return text_of(prompt, decode)
    except ValueError:
        raise ConfigError("reward.opponents has prompts without text: give a model.hf_path with a tokenizer") from None


class AgainstPool:
    """scorer: of preferences. A response's reward is P̂(y ≻ pool), the mean of P(y ≻ o) over the pool's answers o to its
    prompt; it is not compared with the others of its group.

    A comparison that fails is a tie, and an error of the response. So is a prompt without opponents an error.
    metrics: those of the scorer.
    """

    gives_preferences = False

    def __init__(self, scorer: Scorer, pool: Pool, decode: Decode | None) -> None:
        assert scorer.gives_preferences, "the registry checks it"
        self._scorer, self._pool, self._decode = scorer, pool, decode
        self.metrics: dict[str, float] = {}

    @property
    def needs_answer(self) -> bool:
        return self._scorer.needs_answer

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """See `Scorer`."""
        pools = [self._pool.get(_key(group.prompt, self._decode), ()) for group in groups]
        duels = [
            Group(group.prompt, [response, opponent])
            for group, pool in zip(groups, pools, strict=True)
            for response in group.responses
            for opponent in pool
        ]
        of_duels = iter(self._scorer.score(duels))
        self.metrics = dict(self._scorer.metrics)
        return [
            with_rewards(group, [_outcome([next(of_duels) for _ in pool]) for _ in group.responses])
            for group, pool in zip(groups, pools, strict=True)
        ]

    def close(self) -> None:
        self._scorer.close()


def _outcome(duels: Sequence[Group]) -> Outcome:
    """Of one response, the first in each duel."""
    if not duels:
        return Outcome(None, None, "reward.opponents has no answer to this prompt")
    rates = [0.5 if duel.preference is None else float(duel.preference[0, 1]) for duel in duels]
    return Outcome(
        sum(rates) / len(rates), None, next((d.responses[0].error for d in duels if d.responses[0].error), None)
    )
