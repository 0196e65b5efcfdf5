"""What flows through the loop: prompts go in, groups of responses come out, scored groups are trained on.

Everything here lives on the host and is frozen: what a later stage knows is a new object. Token ids and log-probs are
numpy arrays (int32 and float32), so that a million responses cost bytes per token and not Python objects per token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One prompt `x` with its ground truth `y*`.

    index: position in the data set.
    token_ids: int32 [prompt_length], what the model is fed (chat template already applied).
    human_token_ids: int32 [response_length], a human's response with its end token (SPIN's winner), None without one.
    messages: the conversation as the record has it, [{"role": ..., "content": ..., ...}, ...], None if it has text.
    extra: every other column of the record, as plain JSON values. source: the name of the data source, None for the
    only one. rewards: the named rewards that score its responses, each with its weight; None if no reward has a name.
    """

    index: int
    token_ids: np.ndarray
    text: str | None = None
    answer: str | None = None
    human_token_ids: np.ndarray | None = None
    messages: list[dict[str, Any]] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = None
    rewards: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Response:
    """One response `y`, its end token included.

    token_ids: int32 [response_length]. loss_mask: bool [response_length], True for the tokens that the policy sampled:
    they alone are summed, regressed and counted as the response's length. False for the tokens of tools and
    environments. None: every token counts.
    rollout_log_probs: float32 [response_length] in nats, what the engine sampled from, or None if the engine did not
    record it. finish_reason: "stop" (an end token) or "length" (cut off).
    reward: r(x, y, y*), None before scoring. correct: whether it is the right answer, None if that isn't defined.
    error: why scoring failed, None if it did not.
    policy_version: optimizer steps of the weights that it was sampled from, None if that isn't known.
    old_log_probs: float32 [response_length] in nats, log π_t by the trainer, None before it was computed.
    """

    token_ids: np.ndarray
    text: str | None = None
    rollout_log_probs: np.ndarray | None = None
    finish_reason: str = "stop"
    reward: float | None = None
    correct: bool | None = None
    error: str | None = None
    policy_version: int | None = None
    old_log_probs: np.ndarray | None = None
    loss_mask: np.ndarray | None = None

    @property
    def length(self) -> int:
        """Tokens that count: those that the policy sampled."""
        return len(self.token_ids) if self.loss_mask is None else int(self.loss_mask.sum())


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """The K responses to one prompt.

    preference: float64 [K, K], entry (i, j) = P(response i beats response j), or None if rewards are scalar.
    """

    prompt: Prompt
    responses: list[Response] = field(default_factory=list)
    preference: np.ndarray | None = None


def num_tokens(groups: Iterable[Group]) -> int:
    """Tokens that count, of all responses."""
    return sum(response.length for group in groups for response in group.responses)


@dataclass(frozen=True)
class SamplingParams:
    """temperature 0 is greedy. top_p = 1 and top_k = -1 keep the full vocabulary. Sequences end at a stop token."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    stop_token_ids: frozenset[int] = field(default_factory=frozenset)
