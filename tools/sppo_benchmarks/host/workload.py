"""An iteration's responses as a reasoning model gives them: many lengths, a long tail, frequent tokens often."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from sppo_megatron.batch.build import rollouts_of
from sppo_megatron.batch.gate import Rollouts
from sppo_megatron.batch.sequences import Sequences, sequences_of
from sppo_megatron.types import Group, Prompt, Response

SAMPLES = 8  # responses to a prompt
PROMPT = 96  # tokens
LONGEST = 8192
_MEDIAN = 600  # tokens of a response
_VOCABULARY = 128_000
_WORDS = np.array([f"{stem}{end}" for stem in ("so", "ther", "numb", "we") for end in ("", "e", "er", "ing")])


@dataclass(frozen=True, eq=False)
class Workload:
    """groups: with texts, rollout and old log-probs and rewards, of about `tokens` response tokens."""

    groups: list[Group]
    tokens: int

    @classmethod
    def of(cls, tokens: int) -> Workload:
        """At least one group. The same groups for the same size."""
        generator = np.random.default_rng(0)
        groups: list[Group] = []
        total = 0
        while total < tokens:
            lengths = np.clip(generator.lognormal(np.log(_MEDIAN), 1.0, SAMPLES).astype(int), 1, LONGEST)
            groups.append(_group(generator, len(groups), lengths))
            total += int(lengths.sum())
        return cls(groups, total)

    @cached_property
    def sequences(self) -> Sequences:
        return sequences_of(self.groups)

    @cached_property
    def rollouts(self) -> Rollouts:
        return rollouts_of(self.groups, self.sequences)

    @cached_property
    def old_log_probs(self) -> np.ndarray:
        """float32 [T] nats."""
        return np.concatenate([r.old_log_probs for group in self.groups for r in group.responses])


def _group(generator: np.random.Generator, index: int, lengths: np.ndarray) -> Group:
    prompt = Prompt(index, _token_ids(generator, PROMPT), text=_text(generator, PROMPT), answer=str(index))
    responses = [_response(generator, int(length)) for length in lengths]
    return Group(prompt, responses)


def _response(generator: np.random.Generator, length: int) -> Response:
    rollout = -(generator.exponential(0.7, length) ** 3).astype(np.float32)
    response = Response(
        _token_ids(generator, length),
        text=_text(generator, length),
        rollout_log_probs=rollout,
        finish_reason="length" if length == LONGEST else "stop",
        reward=float(generator.random() < 0.5),
        policy_version=0,
    )
    return replace(response, old_log_probs=rollout + generator.normal(0, 3e-6, length).astype(np.float32))


def _token_ids(generator: np.random.Generator, count: int) -> np.ndarray:
    return (generator.zipf(1.3, count) % _VOCABULARY).astype(np.int32)


def _text(generator: np.random.Generator, count: int) -> str:
    return " ".join(_WORDS[generator.integers(0, len(_WORDS), count)])
