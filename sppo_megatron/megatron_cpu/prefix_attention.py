"""Attention of segments that share the keys and values of a prefix, without copying them.

The queries of all segments behind a prefix attend to it in one call, each segment attends to itself in another, and
the two are put together by their log-sum-exps. Backward, each call gets the merged output and log-sum-exp: the
probabilities that it computes again are then those of the whole softmax, its gradients the whole one's over its keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _Call(NamedTuple):
    queries: slice
    keys: slice
    causal: bool


def prefix_attention(
    query: Tensor, key: Tensor, value: Tensor, segments: Sequence[tuple[int, int, int]], scale: float
) -> Tensor:
    """Causal attention of each segment over itself and all of its prefix.

    query, key, value: [1, heads, t, d] on a CPU, with as many heads each. segments: (tokens, first token of the
    prefix, tokens of the prefix) in order, together t tokens; those of one prefix lie one after the other; 0 tokens for
    none. Returns [1, heads, t, d].
    """
    own: list[_Call] = []
    over_prefix: list[_Call] = []
    start = 0
    for length, first, prefix in segments:
        own.append(_Call(slice(start, start + length), slice(start, start + length), True))
        keys = slice(first, first + prefix)
        if prefix and over_prefix and over_prefix[-1].keys == keys:
            over_prefix[-1] = _Call(slice(over_prefix[-1].queries.start, start + length), keys, False)
        elif prefix:
            over_prefix.append(_Call(slice(start, start + length), keys, False))
        start += length
    return _PrefixAttention.apply(query, key, value, own, over_prefix, scale)


class _PrefixAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, own: list[_Call], over_prefix: list[_Call], scale: float
    ) -> Tensor:
        out, total = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
        for call in own:
            at = call.queries
            out[:, :, at], total[:, :, at] = _attend(q, k, v, call, scale)
        for call in over_prefix:
            at = call.queries
            of_prefix, prefix_sum = _attend(q, k, v, call, scale)
            own_sum = total[:, :, at]
            both = torch.logaddexp(own_sum, prefix_sum)
            shares = ((part - both).exp()[..., None] for part in (own_sum, prefix_sum))
            out[:, :, at] = sum(part * share for part, share in zip((out[:, :, at], of_prefix), shares, strict=True))
            total[:, :, at] = both
        ctx.save_for_backward(q, k, v, out, total)
        ctx.calls, ctx.scale = (*own, *over_prefix), scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, total = ctx.saved_tensors
        grads = [torch.zeros_like(tensor) for tensor in (q, k, v)]
        for call in ctx.calls:
            of_queries = (tensor[:, :, call.queries] for tensor in (grad, q, out, total))
            rows, queries, outputs, sums = (tensor.contiguous() for tensor in of_queries)
            parts = _backward(
                rows, queries, k[:, :, call.keys], v[:, :, call.keys], outputs, sums, 0.0, call.causal, scale=ctx.scale
            )
            for whole, part, at in zip(grads, parts, (call.queries, call.keys, call.keys), strict=True):
                whole[:, :, at] += part
        return (*grads, None, None, None)


def _attend(q: Tensor, k: Tensor, v: Tensor, call: _Call, scale: float) -> tuple[Tensor, Tensor]:
    """The output [1, heads, s, d], and the log of the softmax's sum [1, heads, s]."""
    return _forward(q[:, :, call.queries], k[:, :, call.keys], v[:, :, call.keys], 0.0, call.causal, scale=scale)
