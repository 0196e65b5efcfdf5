"""Transformer Engine's compiled kernels in plain torch: those that training calls, FP8 with a scale for a whole tensor.

Every number is computed in float32 and rounded where the kernel rounds. Constants of any name are numbers; a kernel
that isn't here raises when it is called.
"""

from __future__ import annotations

import collections
import enum
import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class DType(enum.IntEnum):
    kByte = 0
    kInt32 = 2
    kFloat32 = 4
    kFloat16 = 5
    kBFloat16 = 6
    kFloat8E4M3 = 7
    kFloat8E5M2 = 8
    kFloat4E2M1 = 10


FLOAT8 = {DType.kFloat8E4M3: torch.float8_e4m3fn, DType.kFloat8E5M2: torch.float8_e5m2}
calls: collections.Counter[str] = collections.Counter()  # of kernels, so that a test can see that they were used
FP8FwdTensors = enum.IntEnum(
    "FP8FwdTensors", [f"GEMM{gemm}_{kind}" for gemm in (1, 2, 3) for kind in ("INPUT", "WEIGHT", "OUTPUT")], start=0
)
FP8BwdTensors = enum.IntEnum(
    "FP8BwdTensors", [f"GRAD_{kind}{gemm}" for gemm in (1, 2, 3) for kind in ("OUTPUT", "INPUT")], start=0
)
TORCH = {DType.kFloat32: torch.float32, DType.kFloat16: torch.float16, DType.kBFloat16: torch.bfloat16}


def _counted(kernel: Callable) -> Callable:
    @functools.wraps(kernel)
    def call(*arguments: Any, **options: Any) -> Any:
        calls[kernel.__name__] += 1
        return kernel(*arguments, **options)

    return call


class _Unknown(type):
    """An enumeration with members of any name, or a kernel, which raises."""

    def __getattr__(cls, name: str) -> int:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(cls, name, len(cls.__members__))
        return getattr(cls, name)

    @property
    def __members__(cls) -> dict[str, int]:
        return {name: value for name, value in vars(cls).items() if not name.startswith("__")}

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        raise RuntimeError(f"the stand-in has no {cls.__name__}")


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    globals()[name] = _Unknown(name, (), {})
    return globals()[name]


NVTE_Fused_Attn_Backend = _Unknown("NVTE_Fused_Attn_Backend", (), {})
layernorm_fwd, layernorm_bwd = _Unknown("layernorm_fwd", (), {}), _Unknown("layernorm_bwd", (), {})


def get_cudnn_version() -> int:
    return 91900


def get_cublasLt_version() -> int:
    return 130000


def get_num_cublas_streams() -> int:
    return 1


def get_fused_attn_backend(*arguments: Any, **options: Any) -> tuple[int, str]:
    """None: attention in plain torch, which Transformer Engine has itself."""
    return NVTE_Fused_Attn_Backend.NVTE_No_Backend, "the stand-in has none"


@_counted
def rmsnorm_fwd(x, weight, eps, out, quantizer, dtype, sm_margin, zero_centered):
    rsigma = torch.rsqrt(x.float().square().mean(-1) + eps)
    scaled = x.float() * rsigma[..., None] * (weight.float() + zero_centered)
    scaled = scaled.to(TORCH.get(dtype, dtype))
    return scaled if quantizer is None else quantize(scaled, quantizer, out), None, rsigma


@_counted
def rmsnorm_bwd(grad, x, rsigma, weight, sm_margin, zero_centered):
    normed = x.float() * rsigma[..., None]
    scaled = grad.float() * (weight.float() + zero_centered)
    grad_x = rsigma[..., None] * (scaled - normed * (scaled * normed).mean(-1, keepdim=True))
    return grad_x.to(x.dtype), (grad.float() * normed).flatten(0, -2).sum(0).to(weight.dtype)


@_counted
def quantize(x: Tensor, quantizer: Any, out: Any = None, noop: Any = None) -> Any:
    """To FP8 with one scale for the tensor: the quantizer's, or that of the largest number as it is now."""
    from transformer_engine.pytorch.tensor.float8_tensor import Float8Quantizer, Float8Tensor
    from transformer_engine.pytorch.tensor.storage.float8_tensor_storage import Float8TensorStorage

    dtype, numbers = FLOAT8[quantizer.dtype], x.detach().float()
    largest, limit = numbers.abs().amax(), torch.finfo(dtype).max
    if isinstance(quantizer, Float8Quantizer):
        scale = quantizer.scale
        quantizer.amax.copy_(torch.maximum(quantizer.amax, largest))
    else:
        scale = (limit / largest.clamp_min(1e-30)).view(1)
    data = (numbers * scale).clamp(-limit, limit).to(dtype).view(torch.uint8)
    transpose = fp8_transpose(data, quantizer.dtype) if quantizer.columnwise_usage else None
    fields = {
        "data": data if quantizer.rowwise_usage else None,
        "data_transpose": transpose,
        "fp8_scale_inv": scale.reciprocal().view(1),
        "fp8_dtype": quantizer.dtype,
        "quantizer": quantizer,
    }
    if out is None and quantizer.internal:
        return Float8TensorStorage(**fields, fake_dtype=x.dtype)
    if out is None:
        return Float8Tensor(shape=x.shape, dtype=x.dtype, **fields)
    for name, value in (("_data", fields["data"]), ("_transpose", transpose), ("_scale_inv", fields["fp8_scale_inv"])):
        if value is not None and getattr(out, name) is not None:
            getattr(out, name).copy_(value)
    return out


def bgrad_quantize(grad: Tensor, quantizer: Any) -> tuple[Tensor, Any]:
    return grad.flatten(0, -2).float().sum(0).to(grad.dtype), quantize(grad, quantizer)


def fp8_transpose(data: Tensor, dtype: Any, *, out: Tensor | None = None) -> Tensor:
    transposed = data.flatten(0, -2).t().contiguous().view(data.shape[-1], *data.shape[:-1])
    return transposed if out is None else out.copy_(transposed)


def _plain(tensor: Any) -> Tensor:
    return tensor.dequantize() if "Float8" in type(tensor).__name__ else tensor.detach()


def _check_blocks(*operands: Tensor) -> None:
    """FP8 products take sides of whole blocks of 16."""
    for operand in operands:
        assert operand.shape[-1] % 16 == 0 and operand.shape[:-1].numel() % 16 == 0, operand.shape


def _product(a: Tensor, transpose_a: bool, b: Tensor, transpose_b: bool) -> Tensor:
    """Column-major as cuBLAS has it: in row-major terms op(b) @ op(a), in float32."""
    a, b = (_plain(tensor).reshape(-1, tensor.shape[-1]).float() for tensor in (a, b))
    return (b.t() if transpose_b else b) @ (a.t() if transpose_a else a)


def _write(product: Tensor, out: Tensor, accumulate: bool) -> None:
    product = product.view(out.shape)
    out.copy_(out.float() + product if accumulate else product)


@_counted
def generic_gemm(a, transpose_a, b, transpose_b, out, quantizer, out_dtype, bias, bias_dtype, *rest, **options):
    """(out, gradient of the bias, gelu input, extra output); with grad=True the bias is only a mark to make its own."""
    gelu, _, grad, _, _, accumulate, _ = rest
    if any("Float8" in type(operand).__name__ for operand in (a, b)):
        calls["fp8_products"] += 1
        _check_blocks(a, b)
    assert quantizer is None and not gelu and options["comm_overlap"] is None
    product = options["alpha"] * _product(a, transpose_a, b, transpose_b)
    grad_bias = None
    if bias is not None and grad:
        grad_bias = _plain(b).reshape(-1, b.shape[-1]).float().sum(0).to(bias.dtype)
    elif bias is not None:
        product += bias.float()
    if out is None:
        shape = product.shape if transpose_b else (*b.shape[:-1], product.shape[-1])
        return product.to(TORCH.get(out_dtype, a.dtype)).view(shape), grad_bias, None, None
    _write(product, out, accumulate)
    return out, grad_bias, None, None


def te_general_grouped_gemm(a, transpose_a, b, transpose_b, out, out_dtype, splits, bias, bias_dtype, single, *rest):
    """One product for each expert, into slices of one tensor (single) or into tensors of their own."""
    _, _, _, _, accumulate, _, _ = rest
    parts = out[0].split(splits) if single else out
    for one_a, one_b, part in zip(a, b, parts, strict=True):
        if part.numel() > 0:
            _write(_product(one_a, transpose_a, one_b, transpose_b), part, accumulate)
    return bias


@_counted
def fused_rope_forward(x, freqs, start_positions, tensor_format, interleaved, cu_seqlens, cp_size, cp_rank):
    """Rotates the halves of the first dimensions of x [s, b, h, d], or packed [t, h, d] with cu_seqlens, by freqs."""
    assert start_positions is None and not interleaved and cp_size == 1
    angles = freqs.flatten(0, -2)
    if cu_seqlens is None:
        angles = angles[: x.shape[0], None, None]
    else:
        angles = torch.cat([angles[: end - first] for first, end in itertools.pairwise(cu_seqlens.tolist())])[:, None]
    rotated, rest = x.float().split([freqs.shape[-1], x.shape[-1] - freqs.shape[-1]], -1)
    one, other = rotated.chunk(2, -1)
    turned = rotated * angles.cos() + torch.cat([-other, one], -1) * angles.sin()
    return torch.cat([turned, rest], -1).to(x.dtype)


def fused_rope_backward(grad, freqs, *rest):
    return fused_rope_forward(grad, -freqs, *rest)


def convert_thd_to_bshd(packed, cu_seqlens, batch_size, max_seqlen):
    bounds, out = cu_seqlens.tolist(), packed.new_zeros(batch_size, max_seqlen, *packed.shape[1:])
    for row, (first, end) in enumerate(itertools.pairwise(bounds)):
        out[row, : end - first] = packed[first:end]
    return out


def convert_bshd_to_thd(padded, cu_seqlens, tokens):
    bounds, out = cu_seqlens.tolist(), padded.new_zeros(tokens, *padded.shape[2:])
    for row, (first, end) in enumerate(itertools.pairwise(bounds)):
        out[first:end] = padded[row, : end - first]
    return out


@_counted
def multi_tensor_l2norm(chunk_size, overflow, lists, per_tensor=False):
    assert not per_tensor
    return torch.stack([tensor.float().norm() for tensor in lists[0]]).norm().view(1), torch.empty(0)


def multi_tensor_scale(chunk_size, overflow, lists, scale):
    for source, target in zip(*lists, strict=True):
        target.copy_(source * scale)


multi_tensor_scale_tensor = multi_tensor_scale


@_counted
def multi_tensor_adam(chunk_size, overflow, lists, lr, beta1, beta2, epsilon, step, mode, bias_correction, decay):
    """mode 1: decoupled weight decay (AdamW). lists: gradients, parameters, first and second moments."""
    assert mode == 1 and bias_correction
    for grad, parameter, first, second in zip(*lists, strict=True):
        grad = grad.float()
        first.lerp_(grad, 1 - beta1)
        second.lerp_(grad.square(), 1 - beta2)
        update = (first / (1 - beta1**step)) / ((second / (1 - beta2**step)).sqrt() + epsilon)
        parameter.sub_(lr * (update + decay * parameter))
