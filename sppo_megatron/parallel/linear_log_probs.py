"""Log-probs straight from hidden states and the (sharded) LM head: no [tokens, vocabulary] tensor in any precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .kernels import select_kernels
from .linear_gradient import add_linear_gradients, gather_tokens, main_grad_of, mark_added, start_sum_over_shards
from .logit_tiles import LogitTiles
from .softmax_statistics import LogitGradient, SoftmaxStatistics, compute_dtype
from .vocab_shard import VocabShard, check_linear, check_options, check_targets


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
    gradient_accumulation_fusion: bool = False,
    kernels: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """log softmax(hidden @ weight.T / temperature)[targets] in nats, with the vocabulary split over `tp_group`.

    hidden: [N, H], the same on every rank; with sequence_parallel=True this rank's [N/tp, H], whose concatenation in
        rank order is the whole.
    weight: [V/tp, H], rows [r V/tp, (r + 1) V/tp) of the padded LM head on rank r.
    targets: integers [N] in [0, vocab_size), all of them on every rank.
    vocab_size: the true size; rows of the head beyond it are padding, get no probability and a zero gradient.
    chunk_size: tokens of one tile; None chooses tiles from the shapes and the device.
    gradient_accumulation_fusion: add the gradient of weight to `weight.main_grad`, if it has one, without rounding
        it to the weight's dtype first, by Megatron's protocol.
    kernels: auto (Triton on CUDA if it is installed), torch or triton.

    Returns log_probs [N] in float32 (float64 if an input is), or (log_probs, entropy) with with_entropy=True; the
    same on every rank. Both are differentiable once. The upstream gradients must be the same on every rank of
    `tp_group`; then the gradient of hidden is complete on every rank (or for this rank's tokens, with
    sequence_parallel=True) and the gradient of weight is that of this rank's shard, each in its input's dtype.

    Every rank calls with the same N. Collectives, in this order: [gather of hidden], one all-gather of the statistics;
    in backward [gather of hidden], one reduction of the gradient of hidden, at the same time as the last product for
    the gradient of weight. None of them if N = 0.

    Raises ValueError on mismatched shapes, targets that are not integers or (checked on CPU; elsewhere the log-prob
    is NaN) outside the vocabulary, a vocab_size that the shards don't hold, temperature <= 0, chunk_size < 1,
    sequence_parallel without tp_group, and kernels that can't run.
    """
    check_options(temperature, chunk_size)
    check_linear(hidden, weight)
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
    options = _Options(shard, temperature, chunk_size, sequence_parallel, gradient_accumulation_fusion, kernels)
    log_probs, entropy = _LinearLogProbs.apply(hidden, weight, targets.long(), with_entropy, options)
    return (log_probs, entropy) if with_entropy else log_probs


@dataclass(frozen=True)
class _Options:
    shard: VocabShard
    temperature: float
    chunk_size: int | None
    sequence_parallel: bool
    gradient_accumulation_fusion: bool
    kernels: str


class _LinearLogProbs(torch.autograd.Function):
    """Saves its inputs and 1 or 2 numbers per token; the backward pass computes the logits again, tile by tile."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, with_entropy: bool, options: _Options
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.options, shard = options, options.shard
        dtype = compute_dtype(hidden, weight)
        ctx.kernels = kernels = select_kernels(options.kernels, hidden.device, dtype)
        tiles = LogitTiles(
            gather_tokens(hidden, shard.group) if options.sequence_parallel else hidden,
            weight,
            shard.columns,
            options.temperature,
            options.chunk_size,
            deferred=kernels is not None,
            scratch=with_entropy and kernels is None,
        )
        statistics = SoftmaxStatistics(targets, shard, dtype, with_entropy, kernels)
        for column, end_column in tiles.columns:
            head = tiles.head(column, end_column)
            for token, end in tiles.tokens:
                tile, scratch = tiles.buffers(token, end, column, end_column)
                tiles.write_logits(tile, token, end, head)
                statistics.update(tile, token, column, scratch, tiles.scale)
        log_probs, log_sum_exp, entropy = statistics.finish()
        ctx.save_for_backward(hidden, weight, targets, log_sum_exp, entropy)
        return log_probs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, log_prob_grad: Tensor | None, entropy_grad: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, log_sum_exp, entropy = ctx.saved_tensors
        options, shard = ctx.options, ctx.options.shard
        if log_prob_grad is None:
            log_prob_grad = torch.zeros_like(log_sum_exp)
        gradient = LogitGradient(targets, shard, log_sum_exp, log_prob_grad, entropy, entropy_grad, ctx.kernels)
        whole = gather_tokens(hidden, shard.group) if options.sequence_parallel else hidden
        tiles = LogitTiles(
            whole,
            weight,
            shard.columns,
            options.temperature,
            options.chunk_size,
            deferred=ctx.kernels is not None,
            scratch=entropy_grad is not None and ctx.kernels is None,
        )
        grad_hidden = whole.new_zeros(whole.shape, dtype=tiles.dtype) if ctx.needs_input_grad[0] else None
        main_grad = grad_weight = None
        if ctx.needs_input_grad[1]:
            main_grad = main_grad_of(weight, options.gradient_accumulation_fusion)
            grad_weight = torch.zeros_like(weight) if main_grad is None else main_grad
        waits = []

        def reduce_hidden() -> None:
            if grad_hidden is not None:
                waits.append(start_sum_over_shards(grad_hidden, shard.group, options.sequence_parallel))

        add_linear_gradients(
            tiles,
            whole,
            gradient,
            grad_hidden=grad_hidden,
            grad_weight=grad_weight,
            hidden_complete=reduce_hidden,
        )
        grad_hidden = waits[0]().to(hidden.dtype) if waits else None
        return grad_hidden, grad_weight if main_grad is None else mark_added(weight), None, None, None
