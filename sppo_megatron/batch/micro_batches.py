"""From responses to micro-batches: which data-parallel rank trains on what, and how tokens are laid out.

Two layouts: padded [b, s], one sequence a row; packed (THD) [1, t], sequences one after the other under a token budget.
Every rank computes the plan of all data-parallel ranks from the same data, so no communication is needed to agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sppo_megatron.parallel import zigzag_indices


@dataclass(slots=True, eq=False)
class Sample:
    """One response with all that the loss needs of it.

    index: position in the iteration's flat order of responses. prompt_token_ids, response_token_ids: int32.
    target: δ in nats. weight: multiplies the squared residual. old_log_probs: float32 [response_length] in nats, None
    before π_t was evaluated. ref_log_ratio: log π_t − log π_ref of the whole response, nats. is_human: not sampled, a
    human's response. The rest is for the pairwise family and for diagnostics.
    """

    index: int
    prompt_token_ids: np.ndarray
    response_token_ids: np.ndarray
    target: float = 0.0
    weight: float = 1.0
    reward: float = 0.0
    win_rate: float = 0.5
    preference: float = 0.5
    truncated: bool = False
    old_log_probs: np.ndarray | None = None
    rollout_log_probs: np.ndarray | None = None
    importance_weight: float = 1.0
    policy_version: int | None = None
    ref_log_ratio: float = 0.0
    is_human: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens fed to the model: the last response token predicts nothing."""
        return max(1, len(self.prompt_token_ids) + len(self.response_token_ids) - 1)

    @property
    def is_valid(self) -> bool:
        return len(self.response_token_ids) > 0


# Samples that the loss needs together: (response,) for the regression family, (winner, loser) for the pairwise one.
Unit = tuple[Sample, ...]


@dataclass(frozen=True)
class Layout:
    """How micro-batches are cut. packed: THD under max_tokens, else micro_batch_size rows. cp: context parallel.

    Token counts are padded to sequence_multiple: 2·cp for the zigzag, times tp under sequence parallelism, times
    token_multiple, which each rank's share of the tokens is a multiple of (blocks of FP8).
    """

    micro_batch_size: int = 1
    max_tokens: int | None = None
    cp_size: int = 1
    cp_rank: int = 0
    sequence_parallel_size: int = 1
    token_multiple: int = 1

    @property
    def packed(self) -> bool:
        return self.max_tokens is not None

    @property
    def segment_multiple(self) -> int:
        return 2 * self.cp_size if self.cp_size > 1 else 1

    @property
    def sequence_multiple(self) -> int:
        return self.segment_multiple * self.sequence_parallel_size * self.token_multiple

    def padded_length(self, sample: Sample) -> int:
        return round_up(sample.num_tokens, self.segment_multiple)


@dataclass(slots=True, eq=False)
class MicroBatch:
    """One forward pass of one context-parallel rank. n = its response tokens, S = sequences of the micro-batch.

    tokens, position_ids: int64 [b, s/cp]. padding: bool [b, s/cp], true where a token is of no sample.
    cu_seqlens: int32 [segments + 1] where packed, of the whole sequence. response_lengths: S numbers on the host.
    rows: int64 [n], where in the flattened [s/cp · b] hidden states the tokens that predict a response token are.
    labels: int64 [n], the predicted tokens. sequence_ids: int64 [n] in [0, S). response_positions: int64 [n].
    old_log_probs, rollout_log_probs: float32 [n]. The rest is float32 [S]; every sequence is complete over the
    context-parallel ranks together. sample_indices: int64 [S].
    """

    tokens: Tensor
    position_ids: Tensor
    padding: Tensor
    cu_seqlens: Tensor | None
    max_seqlen: int
    response_lengths: list[int]
    rows: Tensor
    labels: Tensor
    sequence_ids: Tensor
    response_positions: Tensor
    old_log_probs: Tensor
    rollout_log_probs: Tensor | None
    sample_indices: Tensor
    lengths: Tensor
    target: Tensor
    weight: Tensor
    reward: Tensor
    win_rate: Tensor
    preference: Tensor
    truncated: Tensor
    importance_weight: Tensor
    ref_log_ratio: Tensor
    rollout_log_ratio: Tensor | None

    def to(self, device: torch.device) -> MicroBatch:
        """A copy whose tensors are on the device."""
        if device.type == "cpu":
            return self
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in values.items():
            if isinstance(value, Tensor):
                values[name] = value.to(device, non_blocking=True)
        return MicroBatch(**values)


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def plan_micro_batches(
    units: Sequence[Unit], layout: Layout, dp_size: int, *, multiple_of: int = 1
) -> list[list[list[Unit]]]:
    """The micro-batches of every data-parallel rank: plan[dp_rank][micro_batch] = units.

    Every rank gets the same number of micro-batches, a multiple of multiple_of (the interleaved schedule asks for a
    multiple of the pipeline size); empty ones fill up.
    """
    shares = _balance(units, layout, dp_size) if layout.packed else [list(units[r::dp_size]) for r in range(dp_size)]
    plan = [_pack(share, layout) if layout.packed else _cut(share, layout) for share in shares]
    count = round_up(max(1, *(len(micro_batches) for micro_batches in plan)), multiple_of)
    return [micro_batches + [[] for _ in range(count - len(micro_batches))] for micro_batches in plan]


def _cut(units: Sequence[Unit], layout: Layout) -> list[list[Unit]]:
    size = max(1, layout.micro_batch_size // (len(units[0]) if units else 1))
    return [list(units[i : i + size]) for i in range(0, len(units), size)]


def _unit_length(unit: Unit, layout: Layout) -> int:
    return sum(layout.padded_length(sample) for sample in unit)


def _balance(units: Sequence[Unit], layout: Layout, dp_size: int) -> list[list[Unit]]:
    """Longest first onto the rank with the fewest tokens."""
    shares: list[list[Unit]] = [[] for _ in range(dp_size)]
    loads = [0] * dp_size
    for unit in sorted(units, key=lambda unit: -_unit_length(unit, layout)):
        rank = loads.index(min(loads))
        shares[rank].append(unit)
        loads[rank] += _unit_length(unit, layout)
    return shares


def _pack(units: Sequence[Unit], layout: Layout) -> list[list[Unit]]:
    """First fit decreasing; a unit above the budget gets a micro-batch of its own."""
    assert layout.max_tokens is not None
    bins: list[list[Unit]] = []
    free: list[int] = []
    for unit in sorted(units, key=lambda unit: -_unit_length(unit, layout)):
        length = _unit_length(unit, layout)
        slot = next((i for i, room in enumerate(free) if room >= length), None)
        if slot is None:
            bins.append([])
            free.append(layout.max_tokens)
            slot = len(bins) - 1
        bins[slot].append(unit)
        free[slot] -= length
    return bins


def micro_batch_shape(units: Sequence[Unit], layout: Layout) -> tuple[int, int]:
    """(b, s) over all context-parallel ranks that these units need."""
    samples = [sample for unit in units for sample in unit]
    lengths = [layout.padded_length(sample) for sample in samples]
    if layout.packed:
        return 1, round_up(max(1, sum(lengths)), layout.sequence_multiple)
    return max(1, len(samples)), round_up(max(1, *lengths, 1), layout.sequence_multiple)


def collate(units: Sequence[Unit], layout: Layout, shape: tuple[int, int] | None = None) -> MicroBatch:
    """The tensors of one micro-batch for this context-parallel rank.

    shape: (b, s) at least `micro_batch_shape`; pipelines need the same one for all micro-batches of a step.
    """
    samples = [sample for unit in units for sample in unit]
    b, s = shape or micro_batch_shape(units, layout)
    grid = _fill_grid(samples, layout, b, s)
    if layout.packed:
        boundaries = _segment_boundaries(samples, layout, s)
        segment_lengths = np.diff(boundaries).tolist()
        cu_seqlens, max_seqlen = torch.tensor(boundaries, dtype=torch.int32), max(segment_lengths)
    else:
        segment_lengths, cu_seqlens, max_seqlen = [s], None, s
    held = zigzag_indices(segment_lengths, layout.cp_size, layout.cp_rank).numpy()
    grid = {name: values[:, held] for name, values in grid.items()}

    by_row = {
        name: torch.from_numpy(values.T.reshape(-1)) for name, values in grid.items()
    }  # hidden states are [s, b, h]
    rows = torch.nonzero(by_row["response_position"] >= 0).flatten()
    has_rollout = bool(samples) and all(x.rollout_log_probs is not None for x in samples)

    def per_sequence(name: str) -> Tensor:
        return torch.tensor([float(getattr(sample, name)) for sample in samples], dtype=torch.float32)

    return MicroBatch(
        tokens=torch.from_numpy(np.ascontiguousarray(grid["token"])),
        position_ids=torch.from_numpy(np.ascontiguousarray(grid["position"])),
        padding=torch.from_numpy(np.ascontiguousarray(grid["padding"])),
        cu_seqlens=cu_seqlens,
        max_seqlen=max_seqlen,
        response_lengths=[len(sample.response_token_ids) for sample in samples],
        rows=rows,
        labels=by_row["label"][rows],
        sequence_ids=by_row["sequence"][rows],
        response_positions=by_row["response_position"][rows],
        old_log_probs=by_row["old_log_prob"][rows].float(),
        rollout_log_probs=by_row["rollout_log_prob"][rows].float() if has_rollout else None,
        sample_indices=torch.tensor([sample.index for sample in samples], dtype=torch.int64),
        lengths=torch.tensor([len(sample.response_token_ids) for sample in samples], dtype=torch.float32),
        rollout_log_ratio=_rollout_log_ratio(samples) if has_rollout else None,
        **{name: per_sequence(name) for name in _PER_SEQUENCE},
    )


_PER_SEQUENCE = (
    "target",
    "weight",
    "reward",
    "win_rate",
    "preference",
    "truncated",
    "importance_weight",
    "ref_log_ratio",
)


def _segment_boundaries(samples: Sequence[Sample], layout: Layout, total: int) -> np.ndarray:
    """Cumulative lengths of the packed segments; what remains of the total is one more segment, of padding."""
    boundaries = np.cumsum([0, *(layout.padded_length(sample) for sample in samples)])
    return boundaries if boundaries[-1] == total else np.append(boundaries, total)


def _fill_grid(samples: Sequence[Sample], layout: Layout, b: int, s: int) -> dict[str, np.ndarray]:
    """Each array is [b, s]; response_position is −1 where nothing of a response is predicted."""
    grid: dict[str, np.ndarray] = {
        "token": np.zeros((b, s), np.int64),
        "position": np.zeros((b, s), np.int64),
        "padding": np.ones((b, s), np.bool_),
        "label": np.zeros((b, s), np.int64),
        "sequence": np.zeros((b, s), np.int64),
        "response_position": np.full((b, s), -1, np.int64),
        "old_log_prob": np.zeros((b, s), np.float32),
        "rollout_log_prob": np.zeros((b, s), np.float32),
    }
    start = 0
    for number, sample in enumerate(samples):
        row = 0 if layout.packed else number
        prompt, response = sample.prompt_token_ids, sample.response_token_ids
        ids = np.concatenate([prompt, response])
        fed = slice(start, start + len(ids) - 1)
        grid["token"][row, fed] = ids[:-1]
        grid["position"][row, fed] = np.arange(len(ids) - 1)
        grid["padding"][row, fed] = False
        predicts = slice(start + len(prompt) - 1, start + len(ids) - 1)
        grid["label"][row, predicts] = response
        grid["sequence"][row, predicts] = number
        grid["response_position"][row, predicts] = np.arange(len(response))
        for name, values in (("old_log_prob", sample.old_log_probs), ("rollout_log_prob", sample.rollout_log_probs)):
            if values is not None:
                grid[name][row, predicts] = values
        if layout.packed:
            start += layout.padded_length(sample)
    return grid


def _rollout_log_ratio(samples: Sequence[Sample]) -> Tensor:
    """Σ_t (old − rollout) log-probs of each sequence, in nats; 0 before π_t was evaluated."""
    totals = [
        0.0
        if sample.old_log_probs is None or sample.rollout_log_probs is None
        else float(np.sum(sample.old_log_probs.astype(np.float64) - sample.rollout_log_probs.astype(np.float64)))
        for sample in samples
    ]
    return torch.tensor(totals, dtype=torch.float32)
