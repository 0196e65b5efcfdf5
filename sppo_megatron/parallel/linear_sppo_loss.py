"""The SPPO loss straight from hidden states and the (sharded) LM head, with every logit computed once.

A token's gradient needs, beside its softmax, only the residual of its own sequence. So the logits of whole sequences
are kept, their sums finished, and both gradients written at once: three matrix products where log-probs first and
gradients later take four.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .kernels import Kernels, select_kernels
from .linear_gradient import add_linear_gradients, main_grad_of, mark_added, start_sum_over_shards
from .logit_tiles import LogitTiles
from .sequence import SequenceBatch, check_sequences, cut_groups, order_by_sequence
from .softmax_statistics import LogitGradient, SoftmaxStatistics, compute_dtype
from .vocab_shard import VocabShard, check_linear, check_options, check_targets

LOGITS_BUDGET = 512 * 2**20  # bytes


class LinearSppoLoss(NamedTuple):
    """loss_sum: scalar, differentiable. log_ratio: [S], complete sums. log_probs: [N]. float32; the last two detached.

    All float64 if hidden or weight is.
    """

    loss_sum: Tensor
    log_ratio: Tensor
    log_probs: Tensor


def linear_sppo_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    old_log_probs: Tensor,
    sequence_ids: Tensor,
    regression_target: Tensor,
    coefficient: Tensor,
    *,
    lengths: Sequence[int],
    tp_group: dist.ProcessGroup | None = None,
    cp_group: dist.ProcessGroup | None = None,
    vocab_size: int | None = None,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    logits_budget: int = LOGITS_BUDGET,
    gradient_accumulation_fusion: bool = False,
    kernels: str = "auto",
) -> LinearSppoLoss:
    """Σ_k coefficient_k (s_k − δ_k)², s_k = Σ_t of sequence k (log_prob_t − old_log_prob_t), in nats².

    hidden [N, H], weight [V/tp, H], targets [N], tp_group, vocab_size, temperature, chunk_size,
        gradient_accumulation_fusion and kernels: as in `vocab_parallel_linear_log_probs`.
    old_log_probs: [N] nats. sequence_ids: integers [N] in [0, S). N may differ between ranks of cp_group.
    regression_target: δ [S] nats. coefficient: [S], 0 for what must not count; what it multiplies must be finite.
    lengths: S integers, the tokens of each sequence over all ranks of cp_group: what decides which sequences go
        together, the same on every rank.
    logits_budget: bytes of kept logits. As many sequences go together as fit on one rank in the worst case; the logits
        of one that doesn't fit are computed twice instead, and nothing else changes.

    Equal to `vocab_parallel_linear_log_probs`, then `sequence_sum` over cp_group, then the sum of squares, in values
    and gradients: every rank of cp_group gets the whole loss and the gradients of its own tokens, to be summed over
    the ranks. The gradients are computed in the forward pass (not under no_grad) and kept, that of weight in float32;
    the backward pass multiplies them with the upstream scalar, once.

    Collectives: for each group of sequences one all-gather of the statistics over tp_group (none if N = 0) and one
    all-reduce of the sums over cp_group; at the end one all-reduce of the gradient of hidden over tp_group.

    Raises ValueError on mismatched shapes, lengths that are fewer than what sequence_ids hold (checked on CPU), and as
    `vocab_parallel_linear_log_probs`.
    """
    check_options(temperature, chunk_size)
    check_linear(hidden, weight)
    tokens, sequences = hidden.shape[:1], (len(lengths),)
    for name, tensor, shape in (
        ("targets", targets, tokens),
        ("old_log_probs", old_log_probs, tokens),
        ("sequence_ids", sequence_ids, tokens),
        ("regression_target", regression_target, sequences),
        ("coefficient", coefficient, sequences),
    ):
        if tensor.shape != shape:
            raise ValueError(
                f"{name} {list(tensor.shape)} must be {list(shape)}: one entry for each row of hidden "
                f"{list(hidden.shape)}, or for each of the {len(lengths)} lengths"
            )
    shard = VocabShard.of(weight.shape[0], vocab_size, tp_group)
    check_targets(targets, shard.vocab_size)
    check_sequences(sequence_ids, lengths)
    options = _Options(
        shard,
        cp_group,
        temperature,
        chunk_size,
        logits_budget,
        tuple(int(length) for length in lengths),
        gradient_accumulation_fusion,
        select_kernels(kernels, hidden.device, compute_dtype(hidden, weight)),
    )
    dtype = compute_dtype(hidden, weight)
    batch = SequenceBatch(
        hidden.detach(),
        targets.long(),
        old_log_probs.detach(),
        sequence_ids.long(),
        regression_target.detach().to(dtype),
        coefficient.detach().to(dtype),
    )
    return LinearSppoLoss(*_LinearSppoLoss.apply(hidden, weight, batch, torch.is_grad_enabled(), options))


@dataclass(frozen=True)
class _Options:
    shard: VocabShard
    cp_group: dist.ProcessGroup | None
    temperature: float
    chunk_size: int | None
    logits_budget: int
    lengths: tuple[int, ...]
    gradient_accumulation_fusion: bool
    kernels: Kernels | None


class _LinearSppoLoss(torch.autograd.Function):
    """Saves the gradients instead of what they are made of."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        batch: SequenceBatch,
        grad_enabled: bool,
        options: _Options,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.fused, ctx.dtype = options.gradient_accumulation_fusion, hidden.dtype
        dtype = compute_dtype(hidden, weight)
        needed = [grad_enabled and wanted for wanted in ctx.needs_input_grad[:2]]
        grad_hidden = hidden.new_zeros(hidden.shape, dtype=dtype) if needed[0] else None
        grad_weight = weight.new_zeros(weight.shape, dtype=dtype) if needed[1] else None
        # Grouped by what all ranks share: the padded width of a shard and the tokens over all context-parallel ranks.
        groups = cut_groups(options.lengths, weight.shape[0] * dtype.itemsize, options.logits_budget)
        order, bounds = order_by_sequence(batch.sequence_ids, groups, options.lengths)
        batch = batch if order is None else batch.in_order(order)
        waits: list[Callable[[], Tensor]] = []

        def reduce_hidden() -> None:
            if grad_hidden is not None:
                waits.append(start_sum_over_shards(grad_hidden, options.shard.group))

        parts = []
        for sequences, tokens in zip(groups, bounds, strict=True):
            gradients = (None if grad_hidden is None else grad_hidden[slice(*tokens)], grad_weight)
            complete = reduce_hidden if sequences == groups[-1] else _nothing
            part = batch.part(slice(*tokens), slice(*sequences))
            parts.append(_group_loss(part, weight, options, gradients, complete))
        losses, log_ratios, log_probs = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        grad_hidden = waits[0]() if waits else None
        if order is not None:
            log_probs = torch.empty_like(log_probs).index_copy_(0, order, log_probs)
            if grad_hidden is not None:
                grad_hidden = torch.empty_like(grad_hidden).index_copy_(0, order, grad_hidden)
        ctx.save_for_backward(weight if needed[1] else None, grad_hidden, grad_weight)
        log_ratio = log_ratios.to(dtype)
        ctx.mark_non_differentiable(log_ratio, log_probs)
        return losses.sum().to(dtype), log_ratio, log_probs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        weight, grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = (grad_hidden * upstream).to(ctx.dtype)
        if grad_weight is None:
            return grad_hidden, None, None, None, None
        main_grad = main_grad_of(weight, ctx.fused)
        if main_grad is None:  # in place: a second backward pass is refused by autograd, as the saved tensor changed
            return grad_hidden, grad_weight.mul_(upstream).to(weight.dtype), None, None, None
        torch.addcmul(main_grad, grad_weight, upstream, out=main_grad)
        return grad_hidden, mark_added(weight), None, None, None


def _nothing() -> None:
    return None


def _group_loss(
    batch: SequenceBatch,
    weight: Tensor,
    options: _Options,
    gradients: tuple[Tensor | None, Tensor | None],
    hidden_complete: Callable[[], None],
) -> tuple[Tensor, Tensor, Tensor]:
    """(losses [S], log-ratios [S], both float64, log_probs [n]) of a group of sequences; adds to its gradients."""
    shard, kernels = options.shard, options.kernels
    differentiate = any(gradient is not None for gradient in gradients)
    needed = batch.targets.numel() * shard.columns * compute_dtype(batch.hidden, weight).itemsize
    tiles = LogitTiles(
        batch.hidden,
        weight,
        shard.columns,
        options.temperature,
        options.chunk_size,
        deferred=kernels is not None,
        keep=differentiate and needed <= options.logits_budget,
    )
    statistics = SoftmaxStatistics(batch.targets, shard, tiles.dtype, kernels=kernels)
    kept = []
    for column, end_column in tiles.columns:
        head = tiles.head(column, end_column)
        for token, end in tiles.tokens:
            tile, _ = tiles.buffers(token, end, column, end_column)
            tiles.write_logits(tile, token, end, head)
            kept.append(statistics.update(tile, token, column, scale=tiles.scale))
    log_probs, log_sum_exp, _ = statistics.finish()

    log_ratio = torch.zeros(batch.coefficient.shape, dtype=torch.float64, device=log_probs.device)
    log_ratio.index_add_(0, batch.sequence_ids, (log_probs - batch.old_log_probs).double())
    if options.cp_group is not None and log_ratio.numel() > 0:
        dist.all_reduce(log_ratio, group=options.cp_group)
    residual = log_ratio - batch.regression_target
    if differentiate:
        slope = (2 * batch.coefficient * residual).to(tiles.dtype)
        add_linear_gradients(
            tiles,
            batch.hidden,
            LogitGradient(batch.targets, shard, log_sum_exp, slope[batch.sequence_ids], kernels=kernels),
            grad_hidden=gradients[0],
            grad_weight=gradients[1],
            kept=kept if tiles.keep else None,
            hidden_complete=hidden_complete,
        )
    return batch.coefficient * residual.square(), log_ratio, log_probs
