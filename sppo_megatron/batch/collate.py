"""The tensors of one micro-batch: tokens in their grid, and the rows that predict a response token."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sppo_megatron.batch.micro_batches import MicroBatchLayout, micro_batch_shape
from sppo_megatron.batch.sequences import Sequences
from sppo_megatron.batch.shared_prompts import Places, Segments, SharedPrompts, place_shared
from sppo_megatron.batch.training_batch import NOTHING, TrainingBatch, members
from sppo_megatron.parallel import zigzag_indices


@dataclass(slots=True, eq=False)
class MicroBatch:
    """One forward pass of one context-parallel rank. n = its response tokens that count, S = its sequences.

    tokens, position_ids: int64 [b, s/cp]. padding: bool [b, s/cp], True for a token of no sequence.
    cu_seqlens: int32 [segments + 1] of the whole sequence if packed, else None. segments: None if no prompt is shared.
    rows: int64 [n], places in the flattened [s/cp · b] hidden states of the tokens that predict a response token.
    labels: int64 [n], the predicted tokens. token_index: int64 [n], their places in the batch's flat response tokens.
    sequence_ids: int64 [n] in [0, S). old_log_probs, rollout_log_probs, ref_log_probs: float32 [n] in nats.
    lengths: float32 [S], tokens that count of the whole sequence; response_lengths: the same on the host.
    units: int64 [S], which unit of the micro-batch a sequence is of. columns: float32 [S] each, the batch's.
    Every sequence is complete over the context-parallel ranks together.
    """

    tokens: Tensor
    position_ids: Tensor
    padding: Tensor
    cu_seqlens: Tensor | None
    max_seqlen: int
    rows: Tensor
    labels: Tensor
    token_index: Tensor
    sequence_ids: Tensor
    old_log_probs: Tensor
    rollout_log_probs: Tensor | None
    ref_log_probs: Tensor | None
    lengths: Tensor
    response_lengths: list[int]
    units: Tensor
    columns: dict[str, Tensor]
    segments: Segments | None = None

    def to(self, device: torch.device) -> MicroBatch:
        """A copy whose tensors are on the device."""
        if device.type == "cpu":
            return self

        def moved(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: moved(column) for name, column in value.items()}
            return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

        return MicroBatch(**{f.name: moved(getattr(self, f.name)) for f in fields(self)})


def collate(
    batch: TrainingBatch,
    units: np.ndarray,
    layout: MicroBatchLayout,
    shape: tuple[int, int] | None = None,
    sharing: SharedPrompts | None = None,
) -> MicroBatch:
    """The tensors of one micro-batch, units [U, W] of the batch, for this context-parallel rank.

    shape: (b, s) at least `micro_batch_shape`; pipelines need the same one for all micro-batches of a step.
    """
    sequences, chosen = batch.sequences, members(units)
    b, s = shape or micro_batch_shape(units, sequences.num_tokens, layout, sharing)
    shared = None if sharing is None else place_shared(sharing, chosen, s)
    if shared is None:
        boundaries = _segment_boundaries(sequences, chosen, layout, s)
        places, attended = _place_separate(sequences, chosen, boundaries, layout), None
    else:
        places, attended = shared
        boundaries = np.cumsum([0, *attended.own])
    grid = _fill_grid(sequences, chosen, places, layout, b, s)
    predicting = _predicting_tokens(sequences, chosen, places, layout, b)
    segments = np.diff(boundaries).tolist() if layout.packed else [s]
    if layout.cp_size > 1:
        held = zigzag_indices(segments, layout.cp_size, layout.cp_rank).numpy()
        grid = [np.ascontiguousarray(values[:, held]) for values in grid]
        predicting = _held(predicting, held, b, s)
    rows, index, sequence_ids = predicting
    tokens, position_ids, padding = grid
    lengths = sequences.lengths[chosen]
    has_rollout = batch.has_rollout is not None and len(chosen) > 0 and bool(batch.has_rollout[chosen].all())

    def of_tokens(values: np.ndarray | None) -> Tensor | None:
        return None if values is None else torch.from_numpy(values[index])

    return MicroBatch(
        tokens=torch.from_numpy(tokens),
        position_ids=torch.from_numpy(position_ids),
        padding=torch.from_numpy(padding),
        cu_seqlens=torch.tensor(boundaries, dtype=torch.int32) if layout.packed else None,
        max_seqlen=max(segments),
        rows=torch.from_numpy(rows),
        labels=torch.from_numpy(sequences.token_ids[index].astype(np.int64)),
        token_index=torch.from_numpy(index),
        sequence_ids=torch.from_numpy(sequence_ids),
        old_log_probs=torch.from_numpy(batch.old_log_probs[index]),
        rollout_log_probs=of_tokens(batch.rollout_log_probs) if has_rollout else None,
        ref_log_probs=of_tokens(batch.ref_log_probs),
        lengths=torch.tensor(lengths, dtype=torch.float32),
        response_lengths=lengths.tolist(),
        units=torch.from_numpy(np.nonzero(units != NOTHING)[0]),
        columns={name: torch.from_numpy(values[chosen]) for name, values in batch.columns.items()},
        segments=attended,
    )


def _segment_boundaries(sequences: Sequences, chosen: np.ndarray, layout: MicroBatchLayout, total: int) -> np.ndarray:
    """Where each sequence begins if packed; what remains of the total is one more segment, of padding."""
    boundaries = np.zeros(len(chosen) + 1, np.int64)
    np.cumsum(layout.padded_lengths(sequences.num_tokens[chosen]), out=boundaries[1:])
    return boundaries if boundaries[-1] == total else np.append(boundaries, total)


def _place_separate(
    sequences: Sequences, chosen: np.ndarray, boundaries: np.ndarray, layout: MicroBatchLayout
) -> Places:
    """Each with a prompt of its own; the last token predicts nothing, without a response that is the prompt's own."""
    begins = boundaries[: len(chosen)] if layout.packed else np.zeros(len(chosen), np.int64)
    answers = begins + np.diff(sequences.prompt_offsets)[sequences.prompt_of[chosen]]
    ends = np.where(np.diff(sequences.offsets)[chosen] > 0, answers, answers - 1)
    return Places(begins, ends, answers, np.ones(len(chosen), np.bool_))


def _fill_grid(
    sequences: Sequences, chosen: np.ndarray, places: Places, layout: MicroBatchLayout, b: int, s: int
) -> list[np.ndarray]:
    """Tokens and positions, int64 [b, s], and padding, bool [b, s]."""
    tokens, positions = np.zeros((2, b, s), np.int64)
    padding = np.ones((b, s), np.bool_)
    counting = np.arange(sequences.num_tokens[chosen].max(initial=0) + 1)
    bounds = zip(*(column.tolist() for column in places), strict=True)
    for number, (index, (start, prompt_end, answer, holds_prompt)) in enumerate(
        zip(chosen.tolist(), bounds, strict=True)
    ):
        row = 0 if layout.packed else number
        prompt_first, prompt_last = sequences.prompt_offsets[sequences.prompt_of[index] :][:2]
        first, end = sequences.offsets[index : index + 2]
        length, fed = int(prompt_last - prompt_first), max(0, int(end - first) - 1)
        if holds_prompt:
            tokens[row, start:prompt_end] = sequences.prompt_token_ids[prompt_first:][: prompt_end - start]
            positions[row, start:prompt_end] = counting[: prompt_end - start]
            padding[row, start:prompt_end] = False
        tokens[row, answer : answer + fed] = sequences.token_ids[first : first + fed]
        positions[row, answer : answer + fed] = counting[length : length + fed]
        padding[row, answer : answer + fed] = False
    return [tokens, positions, padding]


def _predicting_tokens(
    sequences: Sequences, chosen: np.ndarray, places: Places, layout: MicroBatchLayout, b: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the tokens that predict a response token that counts, in the order of their rows: int64 [n] each.

    Their rows in hidden states [s, b] that are flattened; places of the predicted ones in the batch's flat response
    tokens; sequences, counted within the micro-batch. A shared prompt's last token predicts the first one of each of
    its responses.
    """
    firsts = sequences.offsets[chosen]
    ends = np.cumsum(sequences.offsets[chosen + 1] - firsts)
    lasts = places.prompt + np.diff(sequences.prompt_offsets)[sequences.prompt_of[chosen]] - 1
    rows, index, sequence_ids = np.empty((3, int(ends[-1]) if len(ends) else 0), np.int64)
    counting = np.arange(len(rows) + int(places.answer.max(initial=0)))
    begin = 0
    of_each = zip(*(column.tolist() for column in (firsts, lasts, places.answer, ends)), strict=True)
    for number, (first, last, answer, end) in enumerate(of_each):
        if end > begin:
            rows[begin] = last
            rows[begin + 1 : end] = counting[answer : answer + end - begin - 1]
        np.add(counting[: end - begin], first, out=index[begin:end])
        sequence_ids[begin:end] = number
        begin = end
    if not layout.packed:
        rows = rows * b + sequence_ids  # hidden states are [s, b, h]
    if sequences.loss_mask is not None:
        counts = sequences.loss_mask[index]
        rows, index, sequence_ids = rows[counts], index[counts], sequence_ids[counts]
    return _in_order(rows, index, sequence_ids) if b > 1 else (rows, index, sequence_ids)


def _held(
    predicting: tuple[np.ndarray, np.ndarray, np.ndarray], held: np.ndarray, b: int, s: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same of the columns that this context-parallel rank holds. held: int64 [s/cp]."""
    column_here = np.full(s, -1, np.int64)
    column_here[held] = np.arange(len(held))
    rows, index, sequence_ids = predicting
    columns = column_here[rows // b]
    own = columns >= 0
    return _in_order(columns[own] * b + rows[own] % b, index[own], sequence_ids[own])


def _in_order(
    rows: np.ndarray, index: np.ndarray, sequence_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    order = np.argsort(rows, kind="stable")
    return rows[order], index[order], sequence_ids[order]
