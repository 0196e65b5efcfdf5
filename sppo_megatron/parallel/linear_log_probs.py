"""Log-probs straight from hidden states and the (sharded) LM head: no [tokens, vocabulary] tensor in any precision."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .softmax_statistics import LogitGradient, SoftmaxStatistics, compute_dtype
from .vocab_shard import VocabShard, check_options, check_targets

# Bounds on one tile of logits: 8 MiB on CPU, where it should stay in the cache (measured: 512 tokens or less make the
# gradient of weight slow, more columns gain nothing), and 128 MiB on an accelerator, where it should fill the device.
_TILE_ELEMENTS = {"cpu": 2 * 1024 * 1024}
_TILE_TOKENS = {"cpu": 2048}
_MIN_TILE_COLUMNS = 256


def vocab_parallel_linear_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    tp_group: dist.ProcessGroup | None = None,
    vocab_size: int | None = None,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    with_entropy: bool = False,
    sequence_parallel: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """log softmax(hidden @ weight.T / temperature)[targets] in nats, with the vocabulary split over `tp_group`.

    hidden: [N, H], the same on every rank; with sequence_parallel=True this rank's [N/tp, H], whose concatenation in
        rank order is the whole.
    weight: [V/tp, H], rows [r V/tp, (r + 1) V/tp) of the padded LM head on rank r.
    targets: integers [N] in [0, vocab_size), all of them on every rank.
    vocab_size: the true size; rows of the head beyond it are padding, get no probability and a zero gradient.
    chunk_size: tokens of one tile; None chooses tiles from the shapes and the device.

    Returns log_probs [N] in float32 (float64 where an input is), or (log_probs, entropy) with with_entropy=True; the
    same on every rank. Both are differentiable once. The upstream gradients must be the same on every rank of
    `tp_group`; then the gradient of hidden is complete on every rank (or for this rank's tokens, with
    sequence_parallel=True) and the gradient of weight is that of this rank's shard, each in its input's dtype.

    Every rank calls with the same N. Collectives, in this order: [gather of hidden], one all-gather of the statistics;
    in backward [gather of hidden], one reduction of the gradient of hidden. None of them where N = 0.

    Raises ValueError on mismatched shapes, targets that are not integers or (checked on CPU; elsewhere the log-prob
    is NaN) outside the vocabulary, a vocab_size that the shards don't hold, temperature <= 0, chunk_size < 1, and
    sequence_parallel without tp_group.
    """
    check_options(temperature, chunk_size)
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden {list(hidden.shape)} and weight {list(weight.shape)} must be [tokens, H] and [vocabulary/tp, H]: "
            "flatten the batch and sequence dimensions of hidden"
        )
    if sequence_parallel and tp_group is None:
        raise ValueError("sequence_parallel=True needs tp_group, the group over which hidden is split: pass it")
    shard = VocabShard.of(weight.shape[0], vocab_size, tp_group)
    sequence_parallel = sequence_parallel and shard.group is not None
    tokens = hidden.shape[0] * (dist.get_world_size(shard.group) if sequence_parallel else 1)
    if targets.shape != (tokens,):
        raise ValueError(
            f"targets {list(targets.shape)} must be [{tokens}], one for each row of hidden {list(hidden.shape)}"
            + (" on every tensor-parallel rank: pass the targets of the whole sequence" if sequence_parallel else "")
        )
    check_targets(targets, shard.vocab_size)
    log_probs, entropy = _LinearLogProbs.apply(
        hidden, weight, targets.long(), shard, temperature, chunk_size, with_entropy, sequence_parallel
    )
    return (log_probs, entropy) if with_entropy else log_probs


def choose_tiles(tokens: int, columns: int, device_type: str, chunk_size: int | None = None) -> tuple[int, int]:
    """(tokens, columns) of one tile, at least 1 each.

    The tokens first, in equal parts of at most chunk_size; then as many columns as the budget allows, a multiple of 64
    unless all of them fit.
    """
    parts = math.ceil(tokens / (chunk_size or _TILE_TOKENS.get(device_type, 4096)))
    tile_tokens = math.ceil(tokens / parts) if parts else 1
    fitting = _TILE_ELEMENTS.get(device_type, 32 * 1024 * 1024) // tile_tokens // 64 * 64
    return tile_tokens, max(1, min(columns, max(_MIN_TILE_COLUMNS, fitting)))


def _multiplies_low_precision(device: torch.device) -> bool:
    """Whether torch.mm takes bfloat16 and float16 operands to a float32 result there."""
    return device.type == "cuda" and torch.version.hip is None


class _Tiles:
    """Buffers for one pass over the logits, and the three matrix products, all with results in the compute dtype.

    The buffers are owned here and overwritten by every tile. Operands in lower precision are taken up to the compute
    dtype first, or multiplied as they are where the device gives the product in float32 (`mixed`).
    """

    def __init__(self, hidden: Tensor, weight: Tensor, columns: int, chunk_size: int | None, scratch: bool) -> None:
        self.dtype = compute_dtype(hidden, weight)
        self.mixed = hidden.dtype == weight.dtype != self.dtype and _multiplies_low_precision(hidden.device)
        self.operand_dtype = hidden.dtype if self.mixed else self.dtype
        rows, width = choose_tiles(hidden.shape[0], columns, hidden.device.type, chunk_size)
        self.tokens = [(i, min(i + rows, hidden.shape[0])) for i in range(0, hidden.shape[0], rows)]
        self.columns = [(j, min(j + width, columns)) for j in range(0, columns, width)]
        self._logits = torch.empty(rows * width, dtype=self.dtype, device=hidden.device)
        self._scratch = torch.empty_like(self._logits) if scratch else None

    def buffers(self, rows: int, width: int) -> tuple[Tensor, Tensor | None]:
        """The logits tile and the scratch tile, contiguous [rows, width]."""
        size = rows * width
        scratch = None if self._scratch is None else self._scratch[:size].view(rows, width)
        return self._logits[:size].view(rows, width), scratch

    def operand(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.operand_dtype)

    def add_product(self, out: Tensor, a: Tensor, b: Tensor, beta: float = 1.0, alpha: float = 1.0) -> None:
        """out = beta * out + alpha * a @ b, with `out` in the compute dtype and a, b in the operand dtype."""
        if not self.mixed:
            out.addmm_(a, b, beta=beta, alpha=alpha)
        elif beta == 0:
            torch.mm(a, b, out_dtype=self.dtype, out=out)
            if alpha != 1:
                out.mul_(alpha)
        else:
            out.add_(torch.mm(a, b, out_dtype=self.dtype), alpha=alpha)


class _LinearLogProbs(torch.autograd.Function):
    """Saves its inputs and 1 or 2 numbers per token; the backward pass computes the logits again, tile by tile."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        shard: VocabShard,
        temperature: float,
        chunk_size: int | None,
        with_entropy: bool,
        sequence_parallel: bool,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.options = (shard, temperature, chunk_size, sequence_parallel)
        whole = _gather(hidden, shard.group) if sequence_parallel else hidden
        tiles = _Tiles(whole, weight, shard.columns, chunk_size, with_entropy)
        statistics = SoftmaxStatistics(targets, shard, tiles.dtype, with_entropy)
        for column, end_column in tiles.columns:
            head = tiles.operand(weight[column:end_column])
            for token, end in tiles.tokens:
                tile, scratch = tiles.buffers(end - token, end_column - column)
                tiles.add_product(tile, tiles.operand(whole[token:end]), head.t(), beta=0, alpha=1 / temperature)
                statistics.update(tile, token, column, scratch)
        log_probs, log_sum_exp, entropy = statistics.finish()
        ctx.save_for_backward(hidden, weight, targets, log_sum_exp, entropy)
        return log_probs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, log_prob_grad: Tensor | None, entropy_grad: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, log_sum_exp, entropy = ctx.saved_tensors
        shard, temperature, chunk_size, sequence_parallel = ctx.options
        if log_prob_grad is None:
            log_prob_grad = torch.zeros_like(log_sum_exp)
        gradient = LogitGradient(log_sum_exp, log_prob_grad, entropy, entropy_grad)
        whole = _gather(hidden, shard.group) if sequence_parallel else hidden
        grad_hidden, grad_weight = _gradients(
            whole, weight, targets, shard, gradient, temperature, chunk_size, ctx.needs_input_grad[:2]
        )
        if grad_hidden is not None:
            grad_hidden = _sum_over_shards(grad_hidden, shard.group, sequence_parallel).to(hidden.dtype)
        return grad_hidden, grad_weight, None, None, None, None, None, None


def _gradients(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    shard: VocabShard,
    gradient: LogitGradient,
    temperature: float,
    chunk_size: int | None,
    needed: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """This shard's part of the gradient of hidden, in the compute dtype, and the gradient of weight, in its dtype.

    Vocabulary outer, tokens inner: a slice of the weight's gradient is finished, in one small accumulator of the
    compute dtype, before the next one starts. Padding rows are never visited and keep the zero they start with.
    """
    tiles = _Tiles(hidden, weight, shard.columns, chunk_size, gradient.entropy_grad is not None)
    grad_hidden = torch.zeros(hidden.shape, dtype=tiles.dtype, device=hidden.device) if needed[0] else None
    grad_weight = torch.zeros_like(weight) if needed[1] else None
    # upstream gradients may be too small or too large for float16 operands
    unit, gradient = gradient.normalized() if tiles.mixed else (1.0, gradient)
    row = gradient.row.unsqueeze(1)
    for column, end_column in tiles.columns:
        head = tiles.operand(weight[column:end_column])
        if grad_weight is not None:
            grad_slice = grad_weight[column:end_column]
            in_place = grad_slice.dtype == tiles.dtype
            accumulator = grad_slice if in_place else torch.zeros_like(grad_slice, dtype=tiles.dtype)
        for token, end in tiles.tokens:
            rows = tiles.operand(hidden[token:end])
            tile, scratch = tiles.buffers(end - token, end_column - column)
            tiles.add_product(tile, rows, head.t(), beta=0, alpha=1 / temperature)
            index, inside = shard.locate(targets[token:end], column, end_column - column)
            gradient.write_(tile, token, index, inside, scratch)
            tile = tiles.operand(tile)
            if grad_hidden is not None:
                tiles.add_product(grad_hidden[token:end], tile, head)
            if grad_weight is not None:
                weighted_rows = tiles.operand(hidden[token:end] * row[token:end])
                tiles.add_product(accumulator, tile.t(), weighted_rows, alpha=-1 / temperature)
        if grad_weight is not None and not in_place:
            grad_slice.copy_(accumulator.mul_(unit))
    if grad_hidden is not None:
        grad_hidden.mul_(row * (unit / -temperature))
    return grad_hidden, grad_weight


def _gather(shard: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """[N/tp, H] of every rank -> [N, H], in rank order."""
    assert group is not None
    whole = shard.new_empty(shard.shape[0] * dist.get_world_size(group), shard.shape[1])
    if whole.numel() > 0:
        dist.all_gather_into_tensor(whole, shard.contiguous(), group=group)
    return whole


def _sum_over_shards(grad: Tensor, group: dist.ProcessGroup | None, sequence_parallel: bool) -> Tensor:
    """The sum of `grad` [N, H] over the group: all of it, or this rank's [N/tp, H] with sequence_parallel."""
    if group is None:
        return grad
    tp_size, tp_rank = dist.get_world_size(group), dist.get_rank(group)
    mine = grad.shape[0] // tp_size
    if grad.numel() > 0 and sequence_parallel and dist.get_backend(group) == "nccl":
        part = grad.new_empty(mine, grad.shape[1])
        dist.reduce_scatter_tensor(part, grad, group=group)
        return part
    if grad.numel() > 0:
        dist.all_reduce(grad, group=group)
    return grad[mine * tp_rank : mine * (tp_rank + 1)] if sequence_parallel else grad
