"""What a CUDA device multiplies and a CPU does not: low-precision operands to a float32 result, emulated."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from sppo_megatron.parallel import kernels, logit_tiles


def emulate_mixed_products(patch: pytest.MonkeyPatch) -> None:
    """`torch.mm` and `torch.addmm` take `out_dtype`, as on CUDA.

    No dispatch mode sees what the emulation allocates, nor what Triton's interpreter does if kernels are used.
    """
    mm, addmm = torch.mm, torch.addmm

    def mixed_mm(a: Tensor, b: Tensor, *, out_dtype: torch.dtype | None = None, out: Tensor | None = None) -> Tensor:
        if out_dtype is None:
            return mm(a, b, out=out)
        assert a.dtype == b.dtype != out_dtype == torch.float32 and out is not None and out.dtype == out_dtype
        with _disable_current_modes():
            return out.copy_(a.float() @ b.float())

    def mixed_addmm(
        total: Tensor,
        a: Tensor,
        b: Tensor,
        *,
        out_dtype: torch.dtype | None = None,
        beta: float = 1.0,
        alpha: float = 1.0,
        out: Tensor | None = None,
    ) -> Tensor:
        if out_dtype is None:
            return addmm(total, a, b, beta=beta, alpha=alpha, out=out)
        assert a.dtype == b.dtype != out_dtype == torch.float32
        assert out is total and out.dtype == out_dtype and beta == 1, "added in place"
        with _disable_current_modes():
            return out.add_(a.float() @ b.float(), alpha=alpha)

    patch.setattr(logit_tiles, "multiplies_low_precision", lambda device: True)
    patch.setattr(torch, "mm", mixed_mm)
    patch.setattr(torch, "addmm", mixed_addmm)
    load = kernels._load
    names = ("update_statistics", "write_gradient")
    patch.setattr(kernels, "_load", lambda: SimpleNamespace(**{name: _unseen(getattr(load(), name)) for name in names}))


def _unseen(kernel):
    def call(*arguments, **options):
        with _disable_current_modes():
            kernel(*arguments, **options)
        gc.collect()  # the interpreter keeps what it was called with in a cycle

    return call
