"""Answers that mean the same are ties, whatever a judge is sure of: S-SPPO's semantic gate (arXiv 2606.01561)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import torch

from sppo_megatron.errors import ConfigError
from sppo_megatron.objective import gated_preference
from sppo_megatron.rewards.function import PAIR_ARGUMENTS, UserFunction, by_signature, find_function, to_probability
from sppo_megatron.rewards.preference import with_matrix
from sppo_megatron.rewards.same_answer import count_votes
from sppo_megatron.rewards.scorer import Scorer
from sppo_megatron.rewards.text import Decode, text_of, texts_of
from sppo_megatron.types import Group

Overlap = Callable[[str, str, str, str | None], float]  # (prompt, first, second, answer) -> share in [0, 1]


def same_answer(prompt: str, first: str, second: str, answer: str | None) -> float:
    """1 if both end on the same answer (`count_votes`), else 0."""
    return float([len(places) for places in count_votes([first, second], answer).classes] == [2])


OVERLAPS: dict[str, Overlap] = {"same_answer": same_answer}


def find_overlap(name: str) -> UserFunction:
    """One of OVERLAPS, or the user's `module:name`. Raises ConfigError."""
    if name in OVERLAPS:
        return UserFunction(OVERLAPS[name], len(PAIR_ARGUMENTS), ())
    if ":" not in name:
        raise ConfigError(f"reward.overlap={name!r} is not known: choose {', '.join(OVERLAPS)}, or module:name")
    key = "reward.overlap"
    return by_signature(find_function(name, key), f"{key}={name!r}", PAIR_ARGUMENTS)


class Gated:
    """scorer: of preferences. A pair whose overlap is o has the preference ½ + (1 − o)(P − ½), and every response the
    win rate that follows. o is the mean over both orders; where it can't be told it is 0, and an error of both.

    metrics: those of the scorer, and overlap_sum, added up over all overlap_pairs.
    """

    def __init__(self, scorer: Scorer, overlap: UserFunction, decode: Decode | None) -> None:
        assert scorer.gives_preferences, "the registry checks it"
        self._scorer, self._overlap, self._decode = scorer, overlap, decode
        self.metrics: dict[str, float] = {}

    @property
    def needs_answer(self) -> bool:
        return self._scorer.needs_answer

    @property
    def gives_preferences(self) -> bool:
        return True

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """See `Scorer`."""
        scored = [self._gated(group) for group in self._scorer.score(groups)]
        self.metrics = self._scorer.metrics | {
            "overlap_sum": sum(found for _, found in scored),
            "overlap_pairs": float(sum(len(g.responses) * (len(g.responses) - 1) // 2 for g in groups)),
        }
        return [group for group, _ in scored]

    def close(self) -> None:
        self._scorer.close()

    def _gated(self, group: Group) -> tuple[Group, float]:
        """And the sum of its pairs' overlaps."""
        count = len(group.responses)
        if group.preference is None or count < 2:
            return group, 0.0
        prompt, texts = text_of(group.prompt, self._decode), texts_of(group, self._decode)
        overlap = np.eye(count)
        errors: dict[int, str] = {}
        for i, j in combinations(range(count), 2):
            try:
                orders = [self._of(prompt, texts[a], texts[b], group.prompt.answer) for a, b in ((i, j), (j, i))]
                overlap[i, j] = overlap[j, i] = sum(orders) / 2
            except Exception as error:  # the user's
                errors |= dict.fromkeys((i, j), f"no overlap of responses {i} and {j}: {type(error).__name__}: {error}")
        gated = gated_preference(torch.from_numpy(group.preference), torch.from_numpy(overlap)).numpy()
        return with_matrix(group, gated, errors), float(np.triu(overlap, 1).sum())

    def _of(self, prompt: str, first: str, second: str, answer: str | None) -> float:
        given = dict(zip(PAIR_ARGUMENTS, (prompt, first, second, answer), strict=True))
        positional = [given[name] for name in PAIR_ARGUMENTS[: self._overlap.num_positional]]
        return to_probability(self._overlap(positional, {name: given.get(name) for name in self._overlap.names}))
