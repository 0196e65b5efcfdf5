"""Responses to one prompt in one micro-batch: the prompt's tokens lie there once, before all of its responses.

A linear layer then sees each of them once. Attention of a response runs over its prompt's keys and its own, so that the
log-probs are those of the whole sequences (`sppo_megatron.policy.model.shared_prompts`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from sppo_megatron.batch.sequences import Sequences
from sppo_megatron.batch.training_batch import members

SharingChoice = Literal[False, True, "auto"]
LEAST_GAIN: dict[SharingChoice, float] = {True: 1.0, "auto": 1.2}
"""By the value of train.shared_prompts: how many times as many tokens K whole sequences must have as a shared prompt
with its K responses, if it is to be shared."""


@dataclass(frozen=True, eq=False)
class SharedPrompts:
    """Which sequences go through with one copy of their prompt: neighbours of one prompt, if that gains enough.

    prompt_of, prompts, answers, num_tokens: int64 [N]: the prompt of each sequence, the prompt's tokens, the tokens
    that are fed behind it, and all that are fed of the sequence alone. least_gain: of `LEAST_GAIN`.
    """

    prompt_of: np.ndarray
    prompts: np.ndarray
    answers: np.ndarray
    num_tokens: np.ndarray
    least_gain: float

    def added(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens of each sequence, how many of them lie there already): int64 [S] each, of neighbours in this order.

        The second is 0 for the first of those that share a prompt, and for a sequence that is alone.
        """
        whole, there = self.num_tokens[chosen], np.zeros(len(chosen), np.int64)
        if not len(chosen):
            return whole, there
        firsts = np.flatnonzero(np.diff(self.prompt_of[chosen], prepend=-1))
        counts = np.diff(firsts, append=len(chosen))
        prompts, with_prompt = self.prompts[chosen], self.prompts[chosen] + self.answers[chosen]
        together = np.add.reduceat(with_prompt, firsts) - (counts - 1) * prompts[firsts]
        shares = np.repeat(np.add.reduceat(whole, firsts) > self.least_gain * together, counts)
        is_first = np.zeros(len(chosen), np.bool_)
        is_first[firsts] = True
        return np.where(shares, with_prompt, whole), np.where(shares & ~is_first, prompts, there)

    def tokens(self, chosen: np.ndarray) -> int:
        """All that are fed to the model for these sequences, in this order."""
        whole, there = self.added(chosen)
        return int(whole.sum() - there.sum())

    def parcels(
        self, units: np.ndarray, max_tokens: int, most: float, cost_of: Callable[[np.ndarray], np.ndarray]
    ) -> Parcels:
        """Units [U, W] whose prompt is shared, together; all others alone.

        Those of one prompt are cut into as few parts as make each at most max_tokens long and about as costly as
        `most`. cost_of: the costs of sequences by their tokens.
        """
        found = Parcels([], [], [])

        def add(part: np.ndarray) -> None:
            whole, there = self.added(members(units[part]))
            if len(part) > 1 and not there.any():
                for place in part:
                    add(place[None])
                return
            found.places.append(part)
            found.lengths.append(int(whole.sum() - there.sum()))
            found.costs.append(int(cost_of(whole).sum() - cost_of(there).sum()))

        order = np.argsort(self.prompt_of[units[:, 0]], kind="stable")
        for bundle in np.split(order, np.flatnonzero(np.diff(self.prompt_of[units[order, 0]])) + 1):
            whole, there = self.added(members(units[bundle]))
            cost = float(cost_of(whole).sum() - cost_of(there).sum())
            parts = [bundle]
            for count in range(min(len(bundle), max(1, math.ceil(cost / most))), len(bundle) + 1):
                parts = np.array_split(bundle, count)
                if all(self.tokens(members(units[part])) <= max_tokens for part in parts):
                    break
            for part in parts:
                add(part)
        return found


class Parcels(NamedTuple):
    """Units that stay together in a micro-batch: their places, their tokens and their cost."""

    places: list[np.ndarray]
    lengths: list[int]
    costs: list[int]


@dataclass(frozen=True)
class Segments:
    """What attends to itself, in the order in which it lies: a sequence, a prompt, or the tokens behind a prompt.

    own: tokens of each. first, prompt: where the prompt lies that it attends to as well, and its tokens; 0 without one.
    """

    own: list[int]
    first: list[int]
    prompt: list[int]

    @property
    def lengths_of_keys(self) -> list[int]:
        return [own + prompt for own, prompt in zip(self.own, self.prompt, strict=True)]


class Places(NamedTuple):
    """Where the prompt of each sequence lies, where it ends, and where its response begins: int64 [S] each.

    holds_prompt: bool [S], whether it is the first of those that share it.
    """

    prompt: np.ndarray
    prompt_end: np.ndarray
    answer: np.ndarray
    holds_prompt: np.ndarray


def shared_prompts(sequences: Sequences, choice: SharingChoice) -> SharedPrompts | None:
    """choice: as train.shared_prompts. None if no prompt is shared."""
    if choice is False:
        return None
    prompts = np.diff(sequences.prompt_offsets)[sequences.prompt_of]
    answers = np.maximum(0, np.diff(sequences.offsets) - 1)
    return SharedPrompts(sequences.prompt_of, prompts, answers, sequences.num_tokens, LEAST_GAIN[choice])


def place_shared(sharing: SharedPrompts, chosen: np.ndarray, total: int) -> tuple[Places, Segments] | None:
    """Sequences one after the other in a row of `total` tokens; None if none of them share a prompt."""
    whole, there = sharing.added(chosen)
    if not there.any():
        return None
    ends = np.cumsum(whole - there)
    begins, holds = ends - (whole - there), there == 0
    latest = np.maximum.accumulate(np.where(holds, np.arange(len(chosen)), 0))
    prompts = sharing.prompts[chosen]
    prompt_at = begins[latest]
    places = Places(prompt_at, prompt_at + np.minimum(prompts, whole), np.where(holds, begins + prompts, begins), holds)
    return places, _segments(begins, ends, there, prompt_at, total)


def _segments(begins: np.ndarray, ends: np.ndarray, there: np.ndarray, prompt_at: np.ndarray, total: int) -> Segments:
    own, first, prompt = [], [], []
    is_shared = np.append(there[1:] > 0, False)
    for number in range(len(begins)):
        length = int(ends[number] - begins[number])
        if there[number]:
            parts = [(length, int(prompt_at[number]), int(there[number]))]
        elif is_shared[number]:
            before = int(there[number + 1])
            parts = [(before, 0, 0), (length - before, int(begins[number]), before)]
        else:
            parts = [(length, 0, 0)]
        for part in parts:
            if part[0]:  # a response of one token has nothing behind its prompt
                own.append(part[0])
                first.append(part[1])
                prompt.append(part[2])
    if rest := total - int(ends[-1]):
        own, first, prompt = [*own, rest], [*first, 0], [*prompt, 0]
    return Segments(own, first, prompt)
