"""Prompts with their responses as flat arrays: what the policy computes log-probs of, and what is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sppo_megatron.errors import ConfigError
from sppo_megatron.types import Group


@dataclass(frozen=True, eq=False)
class Sequences:
    """N responses, T tokens of responses in all, P prompts, one array after the other.

    prompt_token_ids: int32, all prompts. prompt_offsets: int64 [P + 1], where each begins. prompt_of: int64 [N].
    token_ids: int32 [T], all responses. offsets: int64 [N + 1], where each begins.
    loss_mask: bool [T], True for the tokens that the policy sampled; they alone are predicted, summed and counted.
    None: every token counts.
    """

    prompt_token_ids: np.ndarray
    prompt_offsets: np.ndarray
    prompt_of: np.ndarray
    token_ids: np.ndarray
    offsets: np.ndarray
    loss_mask: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.prompt_of)

    @property
    def total(self) -> int:
        """T: tokens of all responses, masked-out ones included."""
        return int(self.offsets[-1])

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [N]: tokens of each response that count."""
        if self.loss_mask is None:
            return np.diff(self.offsets)
        return np.bincount(self.sequence_of_token[self.loss_mask], minlength=len(self)).astype(np.int64)

    @cached_property
    def num_tokens(self) -> np.ndarray:
        """int64 [N]: tokens fed to the model; the last response token predicts nothing."""
        return np.maximum(1, np.diff(self.prompt_offsets)[self.prompt_of] + np.diff(self.offsets) - 1)

    @cached_property
    def sequence_of_token(self) -> np.ndarray:
        """int64 [T]: the response that each token is of."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def sums(self, values: np.ndarray) -> np.ndarray:
        """float64 [N]: the sum of values [T] over each response's tokens that count."""
        counted = values if self.loss_mask is None else np.where(self.loss_mask, values, 0)
        return np.bincount(self.sequence_of_token, weights=counted, minlength=len(self))

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        """values [T] as one array for each response."""
        return np.split(values, self.offsets[1:-1]) if len(self) else []

    def first(self, count: int) -> Sequences:
        """The first `count` responses, or all if there are fewer."""
        offsets = self.offsets[: min(count, len(self)) + 1]
        mask = None if self.loss_mask is None else self.loss_mask[: offsets[-1]]
        return Sequences(
            self.prompt_token_ids,
            self.prompt_offsets,
            self.prompt_of[: len(offsets) - 1],
            self.token_ids[: offsets[-1]],
            offsets,
            mask,
        )


def make_sequences(
    prompts: Sequence[np.ndarray],
    responses: Sequence[np.ndarray],
    prompt_of: Sequence[int] | None = None,
    loss_masks: Sequence[np.ndarray | None] | None = None,
) -> Sequences:
    """prompts, responses, loss_masks: one array for each. prompt_of: each response's prompt, by default its own."""
    prompt_token_ids, prompt_offsets = _flatten(prompts)
    token_ids, offsets = _flatten(responses)
    mask = None
    if loss_masks is not None and any(each is not None for each in loss_masks):
        whole = [
            np.ones(len(response), np.bool_) if each is None else each
            for response, each in zip(responses, loss_masks, strict=True)
        ]
        mask = np.concatenate(whole).astype(np.bool_)
        assert len(mask) == len(token_ids), "a loss mask has one entry for each token of its response"
    places = np.arange(len(responses)) if prompt_of is None else np.asarray(prompt_of, np.int64)
    return Sequences(prompt_token_ids, prompt_offsets, places, token_ids, offsets, mask)


def sequences_of(groups: Sequence[Group], with_human_responses: bool = False) -> Sequences:
    """The responses of all groups, in order; behind them, if asked for, each prompt's human response (SPIN's winners).

    Raises ConfigError naming the group whose prompt lacks a human response that is needed.
    """
    responses = [response for group in groups for response in group.responses]
    token_ids = [response.token_ids for response in responses]
    masks = [response.loss_mask for response in responses]
    prompt_of = [place for place, group in enumerate(groups) for _ in group.responses]
    if with_human_responses:
        for place, group in enumerate(groups):
            ids = group.prompt.human_token_ids
            if ids is None:
                raise ConfigError(
                    f"group {place} (prompt {group.prompt.index}) has no human response, which objective.pairwise=spin "
                    "trains towards: set data.response_key, or give human_token_ids in the rollout file"
                )
            token_ids.append(ids)
            masks.append(None)
            prompt_of.append(place)
    return make_sequences([group.prompt.token_ids for group in groups], token_ids, prompt_of, masks)


def _flatten(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """int32 tokens of all, and int64 offsets, one more than there are arrays."""
    offsets = np.zeros(len(arrays) + 1, np.int64)
    np.cumsum([len(array) for array in arrays], out=offsets[1:])
    return (np.concatenate(arrays) if arrays else np.zeros(0)).astype(np.int32), offsets
