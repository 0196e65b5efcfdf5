"""From the gradient of logits, tile by tile, to the gradients of the hidden states and of the sharded LM head."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from .logit_tiles import LogitTiles
from .softmax_statistics import LogitGradient


def add_linear_gradients(
    tiles: LogitTiles,
    hidden: Tensor,
    gradient: LogitGradient,
    *,
    grad_hidden: Tensor | None,
    grad_weight: Tensor | None,
    kept: Sequence[Tensor | None] | None = None,
    hidden_complete: Callable[[], None] = lambda: None,
) -> None:
    """Adds to grad_hidden [N, H] (zeros in the compute dtype) and grad_weight [V/tp, H] (any dtype), if wanted.

    kept: what `SoftmaxStatistics.update` returned for each tile, in order, if the tiles hold what it left in them;
    None computes their logits again. hidden_complete: called when grad_hidden is finished, before the last product for
    grad_weight, so that a reduction over ranks can run at the same time.

    Vocabulary outer, tokens inner: a slice of grad_weight is finished before the next one starts. Padding rows are
    never visited.
    """
    # upstream gradients may be too small or too large for float16 operands
    unit, gradient = gradient.normalized() if tiles.operand_dtype == torch.float16 else (None, gradient)
    operands = _TokenOperands(hidden, tiles, gradient, wanted=grad_weight is not None)
    alpha, last = -1 / tiles.temperature, (len(tiles.columns) - 1, len(tiles.tokens) - 1)

    def finish_hidden() -> None:
        if grad_hidden is not None:
            operands.weight_(grad_hidden)
            if unit is not None:
                grad_hidden.mul_(unit)
        hidden_complete()

    for i, (column, end_column) in enumerate(tiles.columns):
        head = tiles.head(column, end_column)
        grad_slice = None if grad_weight is None else grad_weight[column:end_column]
        in_place = grad_slice is not None and unit is None and _is_rounded_once(grad_slice, tiles)
        total = grad_slice if in_place or grad_slice is None else torch.zeros_like(grad_slice, dtype=tiles.dtype)
        for j, (token, end) in enumerate(tiles.tokens):
            tile, scratch = tiles.buffers(token, end, column, end_column)
            if kept is None:
                tiles.write_logits(tile, token, end, head)
            reference = None if kept is None else kept[i * len(tiles.tokens) + j]
            tile = gradient.write(tile, token, column, tiles.operand_dtype, scratch, tiles.scale, reference)
            if grad_hidden is not None:
                tiles.add_product(grad_hidden[token:end], tile, head, alpha)
            if (i, j) == last:
                finish_hidden()
            if total is not None:
                tiles.add_product(total, tile.t(), operands.rows(token, end), alpha)
        if grad_slice is not None and total is not None and not in_place:
            grad_slice.add_(total if unit is None else total.mul_(unit))
    if min(last) < 0:  # a shard of padding, or no token: no tile, but ranks still reduce together
        finish_hidden()


def _is_rounded_once(grad_slice: Tensor, tiles: LogitTiles) -> bool:
    """Whether products can be added straight to grad_slice: kept in the compute dtype, or written by one product."""
    return grad_slice.dtype == tiles.dtype or (len(tiles.tokens) == 1 and grad_slice.dtype == tiles.operand_dtype)


class _TokenOperands:
    """The hidden states [N, H] as operands for the gradient of the head, times the coefficients that the tile lacks.

    Without kernels the coefficient of a token goes onto its row of hidden, not onto its row of the much wider tile.
    wanted: whether `rows` will be called; the buffer of weighted rows is owned here, one tile of tokens overwrites
    the other.
    """

    def __init__(self, hidden: Tensor, tiles: LogitTiles, gradient: LogitGradient, wanted: bool) -> None:
        self._hidden, self._tiles, self._buffer = hidden, tiles, None
        self._row = None if gradient.row is None or gradient.kernels is not None else gradient.row.unsqueeze(1)
        if self._row is not None and wanted:
            tokens = max((end - token for token, end in tiles.tokens), default=0)
            self._buffer = self._row.new_empty(tokens, hidden.shape[1])

    def rows(self, token: int, end: int) -> Tensor:
        """[end - token, H] in the operand dtype, valid until the next call."""
        if self._row is None or self._buffer is None:
            return self._tiles.rows[token:end]
        weighted = torch.mul(self._hidden[token:end], self._row[token:end], out=self._buffer[: end - token])
        return self._tiles.operand(weighted)

    def weight_(self, grad_hidden: Tensor) -> None:
        """The same coefficients onto the finished gradient of the hidden states, in place."""
        if self._row is not None:
            grad_hidden.mul_(self._row)


def gather_tokens(shard: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """[N/tp, H] of every rank -> [N, H], in rank order."""
    assert group is not None
    whole = shard.new_empty(shard.shape[0] * dist.get_world_size(group), shard.shape[1])
    if whole.numel() > 0:
        dist.all_gather_into_tensor(whole, shard.contiguous(), group=group)
    return whole


def start_sum_over_shards(
    grad: Tensor, group: dist.ProcessGroup | None, sequence_parallel: bool = False
) -> Callable[[], Tensor]:
    """Starts the sum of `grad` [N, H] over the group and returns what waits for it.

    The result is all of the sum, or this rank's [N/tp, H] with sequence_parallel. `grad` belongs to the sum until then.
    """
    if group is None or grad.numel() == 0:
        return lambda: _cut(grad, group) if sequence_parallel else grad
    if sequence_parallel and dist.get_backend(group) == "nccl":
        part = grad.new_empty(grad.shape[0] // dist.get_world_size(group), grad.shape[1])
        work, result = dist.reduce_scatter_tensor(part, grad, group=group, async_op=True), part
    else:
        work = dist.all_reduce(grad, group=group, async_op=True)
        result = _cut(grad, group) if sequence_parallel else grad

    def wait() -> Tensor:
        work.wait()
        return result

    return wait


def _cut(whole: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    mine = whole.shape[0] // size
    return whole[mine * rank : mine * (rank + 1)]


def main_grad_of(weight: Tensor, gradient_accumulation_fusion: bool) -> Tensor | None:
    """The tensor of the weight's shape to add its gradient to, past autograd; None if autograd is to have it.

    With `gradient_accumulation_fusion` Megatron's data-parallel wrapper gives every parameter a fp32 `main_grad`. Who
    adds to it sets `grad_added_to_main_grad`; the wrapper's hook then leaves the autograd gradient alone, except if
    `zero_out_wgrad` says that the parameter has a second use, whose gradient comes through autograd.
    """
    return getattr(weight, "main_grad", None) if gradient_accumulation_fusion else None


def mark_added(weight: Tensor) -> Tensor | None:
    """Says that `main_grad` has the gradient. Returns a placeholder for autograd, whose hooks run only for one."""
    if not hasattr(weight, "grad_added_to_main_grad"):
        return None
    weight.grad_added_to_main_grad = True
    return torch.zeros_like(weight) if getattr(weight, "zero_out_wgrad", False) else torch.empty_like(weight)
