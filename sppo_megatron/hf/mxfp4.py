"""MXFP4, the four-bit floats of gpt-oss checkpoints, as numbers (OCP Microscaling Formats, version 1.0)."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 32  # numbers that share a scale, two in a byte
_BIAS = 127  # of the scales' exponents
# E2M1 by its four bits: a sign, two bits of exponent, one of mantissa.
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = torch.tensor([*_MAGNITUDES, *(-value for value in _MAGNITUDES)])


def dequantize(blocks: Tensor, scales: Tensor) -> Tensor:
    """blocks: uint8 [..., n, 16], the lower half of a byte first; scales: uint8 [..., n], powers of two.

    Returns bf16 [..., 32·n], which holds every finite product exactly.
    """
    lower, upper = _VALUES[(blocks & 15).int()], _VALUES[(blocks >> 4).int()]
    numbers = torch.stack([lower, upper], dim=-1).flatten(-2)
    exponents = (scales.int() - _BIAS).unsqueeze(-1)
    return torch.ldexp(numbers, exponents).to(torch.bfloat16).flatten(-2)
