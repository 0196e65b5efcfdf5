"""One program a row (statistics), one a row and block of columns (gradient): any width, tail, strides and dtype."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_LARGEST_BLOCK = 4096  # columns that a program holds in registers at a time


@triton.jit
def _statistics_kernel(
    tile,
    targets,
    packed,
    columns,
    first,
    row_stride,
    column_stride,
    packed_stride,
    scale,
    ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    tile += row * row_stride
    packed += row
    largest = tl.load(packed)
    sum_exp = tl.load(packed + packed_stride)
    weighted = 0.0
    if ENTROPY:
        weighted = tl.load(packed + 3 * packed_stride)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        z = tl.load(tile + column.to(tl.int64) * column_stride, mask=column < columns, other=float("-inf"))
        z = z.to(tl.float32) * scale
        new_largest = tl.maximum(largest, tl.max(z, axis=0))
        shift = largest - new_largest
        decay = tl.exp(shift)
        exp = tl.exp(z - new_largest)
        if ENTROPY:  # 0 log 0 is 0
            terms = tl.where(exp == 0, 0.0, exp * (z - new_largest))
            weighted = (weighted + shift * sum_exp) * decay + tl.sum(terms, axis=0)
        sum_exp = sum_exp * decay + tl.sum(exp, axis=0)
        largest = new_largest
    tl.store(packed, largest)
    tl.store(packed + packed_stride, sum_exp)
    if ENTROPY:
        tl.store(packed + 3 * packed_stride, weighted)
    index = tl.load(targets + row).to(tl.int64) - first
    inside = (index >= 0) & (index < columns)
    target = tl.load(tile + index * column_stride, mask=inside, other=0.0).to(tl.float32) * scale
    tl.store(packed + 2 * packed_stride, tl.load(packed + 2 * packed_stride) + target)


@triton.jit
def _gradient_kernel(
    tile,
    out,
    targets,
    log_sum_exp,
    log_prob_grad,
    entropy_grad,
    entropy,
    coefficient,
    columns,
    first,
    row_stride,
    column_stride,
    out_row_stride,
    out_column_stride,
    scale,
    ENTROPY: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    wide = column.to(tl.int64)
    z = tl.load(tile + row * row_stride + wide * column_stride, mask=inside, other=float("-inf")).to(tl.float32) * scale
    log_prob = z - tl.load(log_sum_exp + row)
    prob = tl.exp(log_prob)
    one_hot = tl.where(wide == tl.load(targets + row).to(tl.int64) - first, 1.0, 0.0)
    if ENTROPY:
        upstream = tl.load(log_prob_grad + row)
        slope = upstream + tl.load(entropy_grad + row) * (log_prob + tl.load(entropy + row))
        value = tl.where(prob == 0, 0.0, slope * prob) - upstream * one_hot
    else:
        value = prob - one_hot
    if WEIGHTED:
        value *= tl.load(coefficient + row)
    tl.store(out + row * out_row_stride + wide * out_column_stride, value.to(out.dtype.element_ty), mask=inside)


def _block(columns: int) -> int:
    return min(_LARGEST_BLOCK, max(16, triton.next_power_of_2(columns)))


def update_statistics(tile: Tensor, targets: Tensor, packed: Tensor, first: int, scale: float) -> None:
    """See `Kernels.update_statistics`. tile, targets: any strides; packed: float32, its rows contiguous."""
    rows, columns = tile.shape
    if tile.numel() == 0:
        return
    assert packed.dtype == torch.float32 and packed.stride(1) == 1
    _statistics_kernel[(rows,)](
        tile,
        targets.contiguous(),
        packed,
        columns,
        first,
        *tile.stride(),
        packed.stride(0),
        scale,
        ENTROPY=packed.shape[0] == 4,
        BLOCK=_block(columns),
        num_warps=8,
    )


def write_gradient(
    tile: Tensor,
    out: Tensor,
    targets: Tensor,
    log_sum_exp: Tensor,
    first: int,
    scale: float,
    *,
    log_prob_grad: Tensor | None = None,
    entropy_grad: Tensor | None = None,
    entropy: Tensor | None = None,
    coefficient: Tensor | None = None,
) -> None:
    """See `Kernels.write_gradient`. tile, out: any strides; per-token tensors are float32, targets integers."""
    rows, columns = tile.shape
    if tile.numel() == 0:
        return
    block = _block(columns)
    optional = (log_prob_grad, entropy_grad, entropy, coefficient)  # a kernel argument must be a tensor, read or not
    _gradient_kernel[(rows, triton.cdiv(columns, block))](
        tile,
        out,
        targets.contiguous(),
        log_sum_exp,
        *((log_sum_exp if tensor is None else tensor).contiguous() for tensor in optional),
        columns,
        first,
        *tile.stride(),
        *out.stride(),
        scale,
        ENTROPY=entropy_grad is not None,
        WEIGHTED=coefficient is not None,
        BLOCK=block,
        num_warps=8,
    )
