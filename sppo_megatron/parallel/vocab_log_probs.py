"""Log-probs from logits whose vocabulary is split over tensor-parallel ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .kernels import Kernels, select_kernels
from .softmax_statistics import LogitGradient, SoftmaxStatistics, compute_dtype
from .vocab_shard import VocabShard, check_options, check_targets

# Elements of the float32 copy of one chunk of rows: the cache on CPU, enough to fill the device elsewhere.
_CHUNK_ELEMENTS = {"cpu": 256 * 1024}


def vocab_parallel_log_probs(
    logits: Tensor,
    targets: Tensor,
    *,
    tp_group: dist.ProcessGroup | None = None,
    vocab_size: int | None = None,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    with_entropy: bool = False,
    kernels: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """log softmax(logits / temperature)[targets] in nats, with the vocabulary split over `tp_group`.

    logits: [..., V/tp] of any floating dtype and any strides; columns [r V/tp, (r + 1) V/tp) of the padded
        vocabulary on rank r. Never edited, never copied as a whole.
    targets: integers [...] in [0, vocab_size), the same on every rank.
    vocab_size: the true size; columns beyond it are padding, are not read and get a zero gradient.
    chunk_size: rows taken up to float32 at a time; None chooses it from the shapes and the device. Without an effect
        under kernels, which make no float32 copy.
    kernels: auto (Triton on CUDA if it is installed), torch or triton.

    Returns log_probs [...] in float32 (float64 for float64 logits), or (log_probs, entropy) with with_entropy=True;
    the same on every rank. Both are differentiable once; the upstream gradients must be the same on every rank of
    `tp_group`. Saved for backward: logits, targets and one or two numbers per token. The gradient has the dtype of
    the logits.

    One all-gather of the statistics in forward, no collective in backward; none at all if there are no tokens.

    Raises ValueError on mismatched shapes, targets that are not integers or (checked on CPU; elsewhere the log-prob
    is NaN) outside the vocabulary, a vocab_size that the shards don't hold, temperature <= 0, chunk_size < 1, and
    kernels that can't run.
    """
    check_options(temperature, chunk_size)
    if not logits.is_floating_point() or logits.dim() < 1 or logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"logits {list(logits.shape)} ({logits.dtype}) must be floating-point [..., vocabulary/tp] "
            f"with the leading dimensions of targets {list(targets.shape)}: pass one target for each row of logits"
        )
    shard = VocabShard.of(logits.shape[-1], vocab_size, tp_group)
    check_targets(targets, shard.vocab_size)
    selected = select_kernels(kernels, logits.device, compute_dtype(logits))
    log_probs, entropy = _VocabLogProbs.apply(
        logits, targets.long(), shard, temperature, chunk_size, with_entropy, selected
    )
    return (log_probs, entropy) if with_entropy else log_probs


class _VocabLogProbs(torch.autograd.Function):
    """Rows are independent, so both passes go chunk by chunk; a chunk is the only float32 copy of logits.

    Kernels read the logits where they are and make no copy.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        shard: VocabShard,
        temperature: float,
        chunk_size: int | None,
        with_entropy: bool,
        kernels: Kernels | None,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.options = (shard, temperature, chunk_size, kernels)
        statistics = SoftmaxStatistics(targets.reshape(-1), shard, compute_dtype(logits), with_entropy, kernels)
        if kernels is not None:
            for token, rows in _true_columns(logits, shard):
                statistics.update(rows, token, 0, scale=1 / temperature)
        else:
            for token, tile in _scaled_chunks(logits, shard, temperature, chunk_size):
                statistics.update(tile, token, 0, torch.empty_like(tile) if with_entropy else None)
        log_probs, log_sum_exp, entropy = statistics.finish()
        ctx.save_for_backward(logits, targets, log_sum_exp, entropy)
        return log_probs.view(targets.shape), None if entropy is None else entropy.view(targets.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, log_prob_grad: Tensor | None, entropy_grad: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, targets, log_sum_exp, entropy = ctx.saved_tensors
        shard, temperature, chunk_size, kernels = ctx.options
        log_prob_grad = torch.zeros_like(log_sum_exp) if log_prob_grad is None else log_prob_grad.reshape(-1)
        entropy_grad = None if entropy_grad is None else entropy_grad.reshape(-1)
        gradient = LogitGradient(targets.reshape(-1), shard, log_sum_exp, log_prob_grad, entropy, entropy_grad, kernels)
        coefficient = (torch.ones_like(log_prob_grad) if gradient.row is None else gradient.row) / -temperature
        grad = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        grad_rows = grad.view(-1, logits.shape[-1])
        grad_rows[:, shard.columns :] = 0
        if kernels is not None:
            for token, rows in _true_columns(logits, shard):
                tokens = slice(token, token + rows.shape[0])
                out = grad_rows[tokens, : shard.columns]
                gradient.write_with_kernels(rows, out, token, 0, 1 / temperature, coefficient[tokens])
            return grad, *[None] * 6
        for token, tile in _scaled_chunks(logits, shard, temperature, chunk_size):
            tokens = slice(token, token + tile.shape[0])
            scratch = None if entropy_grad is None else torch.empty_like(tile)
            gradient.write(tile, token, 0, tile.dtype, scratch)
            torch.mul(tile, coefficient[tokens].unsqueeze(1), out=grad_rows[tokens, : shard.columns])
        return grad, *[None] * 6


def _true_columns(logits: Tensor, shard: VocabShard) -> Iterator[tuple[int, Tensor]]:
    """(first row, view of the true columns [n, columns]), in row-major order."""
    token = 0
    if logits.numel() > 0 and shard.columns > 0:
        for block in _row_blocks(logits, logits.numel() // logits.shape[-1]):
            yield token, block[:, : shard.columns]
            token += block.shape[0]


def _scaled_chunks(
    logits: Tensor, shard: VocabShard, temperature: float, chunk_size: int | None
) -> Iterator[tuple[int, Tensor]]:
    """(first row, logits / temperature of the true columns in the compute dtype) for chunks of rows in row-major order.

    The tile is a buffer that the consumer may overwrite and that the next chunk reuses.
    """
    if logits.numel() == 0 or shard.columns == 0:
        return
    dtype = compute_dtype(logits)
    budget = _CHUNK_ELEMENTS.get(logits.device.type, 32 * 1024 * 1024)
    rows = min(chunk_size or max(1, budget // shard.columns), logits.numel() // logits.shape[-1])
    buffer = torch.empty(rows * shard.columns, dtype=dtype, device=logits.device)
    token = 0
    for block in _row_blocks(logits, rows):
        tile = buffer[: block.shape[0] * shard.columns].view(block.shape[0], shard.columns)
        tile.copy_(block[:, : shard.columns])
        if temperature != 1:
            tile.mul_(1 / temperature)
        yield token, tile
        token += block.shape[0]


def _row_blocks(tensor: Tensor, rows: int) -> Iterator[Tensor]:
    """Views [at most rows, V] that cover `tensor` [..., V] in row-major order; copies nothing, whatever the strides."""
    try:
        flat = tensor.view(-1, tensor.shape[-1])
    except RuntimeError:
        for part in tensor.unbind(0):
            yield from _row_blocks(part, rows)
    else:
        yield from flat.split(rows)
