"""Attention over a shared prefix against the softmax over all keys, and its gradients against autograd's."""

from __future__ import annotations

import pytest
import torch

from sppo_megatron.megatron_cpu.prefix_attention import prefix_attention

SEGMENTS = [(7, 0, 0), (3, 0, 7), (1, 0, 7), (20, 0, 7), (5, 0, 0), (12, 31, 5), (40, 0, 0), (4, 0, 0)]


def by_definition(q, k, v, scale):
    out, start = [], 0
    for length, first, prefix in SEGMENTS:
        own = slice(start, start + length)
        keys, values = (torch.cat((t[:, :, first : first + prefix], t[:, :, own]), 2) for t in (k, v))
        scores = q[:, :, own] @ keys.mT * scale
        hidden = torch.ones(length, prefix + length, dtype=torch.bool).triu(prefix + 1)
        out.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values)
        start += length
    return torch.cat(out, 2)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_equals_the_definition(dtype, bound):
    generator = torch.Generator().manual_seed(0)
    total = sum(length for length, _, _ in SEGMENTS)
    exact = [torch.randn(1, 3, total, 8, generator=generator, dtype=torch.float64).to(dtype).double() for _ in range(4)]
    given = [tensor.to(dtype, copy=True).requires_grad_() for tensor in exact[:3]]
    out = prefix_attention(*given, SEGMENTS, 0.3)
    out.backward(exact[3].to(dtype))
    wanted = [tensor.clone().requires_grad_() for tensor in exact[:3]]
    expected = by_definition(*wanted, 0.3)
    expected.backward(exact[3])
    assert out.dtype == dtype
    pairs = [(out, expected), *((one.grad, other.grad) for one, other in zip(given, wanted, strict=True))]
    for found, right in pairs:
        assert (found.double() - right).norm() <= bound * right.norm()
