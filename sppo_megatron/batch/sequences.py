"""Prompts with their responses as flat arrays: what the policy computes log-probs of, and what is trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from sppo_megatron.errors import ConfigError
from sppo_megatron.objective.base import Units
from sppo_megatron.types import Group

_BLOCK = 1 << 15  # tokens whose float64 values stay in a core's cache


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
        return self.sums(self.loss_mask).astype(np.int64)

    @cached_property
    def num_tokens(self) -> np.ndarray:
        """int64 [N]: tokens fed to the model; the last response token predicts nothing."""
        return np.maximum(1, np.diff(self.prompt_offsets)[self.prompt_of] + np.diff(self.offsets) - 1)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """float64 [N]: the sum of values [T] over each response's tokens that count."""
        return self.sums_of(lambda of_tokens: of_tokens, values)

    def sums_of(self, function: Callable[..., np.ndarray], *columns: np.ndarray) -> np.ndarray:
        """float64 [N]: sums over each response's tokens that count of a function of columns [T], token by token.

        It is called with the tokens of a few responses at a time, so that nothing of size T is made.
        """
        totals = np.zeros(len(self))
        block_of = self.offsets[:-1] // _BLOCK
        firsts = np.flatnonzero(np.diff(block_of, prepend=-1)).tolist()
        for first, end in pairwise([*firsts, len(self)]):
            tokens = slice(self.offsets[first], self.offsets[end])
            values = function(*(column[tokens] for column in columns))
            if self.loss_mask is not None:
                values = np.where(self.loss_mask[tokens], values, 0)
            totals[first:end] = _segment_sums(values, self.offsets[first : end + 1] - self.offsets[first])
        return totals

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


def _segment_sums(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    totals = np.zeros(len(offsets) - 1)
    is_filled = np.diff(offsets) > 0  # reduceat takes an empty stretch for its first element
    if is_filled.any():
        totals[is_filled] = np.add.reduceat(values, offsets[:-1][is_filled], dtype=np.float64)
    return totals


def difference(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """float64, exact: of two arrays of float32."""
    return np.subtract(values, others, dtype=np.float64)


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


def sequences_of(groups: Sequence[Group], units: Units = Units.SINGLE) -> Sequences:
    """The responses of all groups, in order; behind them each prompt's human response, if it is in the units (SPIN).

    Raises ConfigError naming the group whose prompt lacks a human response that is needed.
    """
    responses = [response for group in groups for response in group.responses]
    token_ids = [response.token_ids for response in responses]
    masks = [response.loss_mask for response in responses]
    prompt_of = [place for place, group in enumerate(groups) for _ in group.responses]
    if units is Units.HUMAN_VS_SAMPLE:
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
