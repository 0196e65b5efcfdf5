"""The Triton kernels alone, against their formulas in float64. Needs CUDA, or Triton's interpreter on CPU."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: see requirements/triton-interpreter.txt")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("without CUDA the kernels run under TRITON_INTERPRET=1 only", allow_module_level=True)

from sppo_megatron.parallel.kernels import softmax  # noqa: E402

ROWS = 3
WIDTHS = [1, 2, 31, 255, 256, 257, 1000, 1023, 1025, 4095, 4096, 4097, 9001]  # tails of every kind of block
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def logits(width: int, dtype: torch.dtype) -> torch.Tensor:
    """[3, width], a view of a wider tensor that is NaN around it; −inf in places."""
    generator = torch.Generator().manual_seed(width)
    wide = torch.full((ROWS, width + 7), float("nan"), dtype=dtype)
    wide[:, 2 : 2 + width] = 4 * torch.randn(ROWS, width, generator=generator)
    wide[1, 2 : 2 + width // 2] = float("-inf")
    return wide.to(DEVICE)[:, 2 : 2 + width]


def exact(tile: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(z, log-sum-exp, p, entropy) in float64 on CPU."""
    z = tile.cpu().double() * scale
    p = torch.softmax(z, -1)
    return z, torch.logsumexp(z, -1), p, -torch.special.xlogy(p, p).sum(-1)


def columns_of(width: int) -> torch.Tensor:
    return torch.tensor([0, width - 1, width // 2], device=DEVICE)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("entropy", [False, True])
def test_statistics(width, dtype, entropy):
    tile, scale, first = logits(width, dtype), 0.7, 1000
    before = tile.clone()
    targets = columns_of(width) + first
    targets[0] = first - 1  # elsewhere
    packed = torch.zeros(4 if entropy else 3, ROWS + 2, device=DEVICE)[:, 1:-1]
    packed[0] = torch.finfo(torch.float32).min
    softmax.update_statistics(tile, targets, packed, first, scale)
    assert torch.equal(tile, before), "the tile was written to"
    z, log_sum_exp, _, expected_entropy = exact(tile, scale)
    largest, sum_exp, target = packed[:3].cpu().double()
    torch.testing.assert_close(largest, z.amax(1), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(largest + sum_exp.log(), log_sum_exp, atol=2e-6, rtol=2e-6)
    expected_target = z[torch.arange(ROWS), columns_of(width).cpu()]
    expected_target[0] = 0
    torch.testing.assert_close(target, expected_target, atol=1e-6, rtol=1e-6)
    if entropy:
        actual = sum_exp.log() - packed[3].cpu().double() / sum_exp
        torch.testing.assert_close(actual, expected_entropy, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cut", [1, 300, 4097, 8999])
@pytest.mark.parametrize("entropy", [False, True])
def test_statistics_continue_from_tile_to_tile(cut, entropy):
    tile = logits(9001, torch.float32)
    packed = torch.zeros(4 if entropy else 3, ROWS, device=DEVICE)
    packed[0] = torch.finfo(torch.float32).min
    targets = columns_of(9001)
    softmax.update_statistics(tile[:, :cut], targets, packed, 0, 1.0)
    softmax.update_statistics(tile[:, cut:], targets, packed, cut, 1.0)
    z, log_sum_exp, _, expected_entropy = exact(tile, 1.0)
    largest, sum_exp, target = packed[:3].cpu().double()
    torch.testing.assert_close(largest + sum_exp.log(), log_sum_exp, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(target, z[torch.arange(ROWS), columns_of(9001).cpu()], atol=1e-6, rtol=1e-6)
    if entropy:
        actual = sum_exp.log() - packed[3].cpu().double() / sum_exp
        torch.testing.assert_close(actual, expected_entropy, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("entropy", [False, True])
def test_gradient(width, dtype, out_dtype, entropy):
    tile, scale = logits(width, dtype), 1.3
    z, log_sum_exp, p, entropies = exact(tile, scale)
    index, first = columns_of(width), 70
    index[0] = (-1, -first, width, width + 5)[width % 4]  # the target of the first row is elsewhere
    one_hot = torch.zeros_like(p)
    one_hot[[1, 2], index[1:].cpu()] = 1
    generator = torch.Generator().manual_seed(0)
    g, h, coefficient = torch.randn(3, ROWS, generator=generator).to(DEVICE)
    if entropy:
        g_64, h_64 = g.cpu().double()[:, None], h.cpu().double()[:, None]
        log_p = (z - log_sum_exp[:, None]).clamp(min=-1e4)
        expected = (g_64 + h_64 * (log_p + entropies[:, None])) * p - g_64 * one_hot
    else:
        expected = p - one_hot
    expected = expected * coefficient.cpu().double()[:, None]

    around = tile.new_full((ROWS, width + 2), 7.0, dtype=out_dtype or dtype)
    out = tile if out_dtype is None else around[:, 1:-1]
    softmax.write_gradient(
        tile,
        out,
        index + first,
        log_sum_exp.float().to(DEVICE),
        first,
        scale,
        log_prob_grad=g if entropy else None,
        entropy_grad=h if entropy else None,
        entropy=entropies.float().to(DEVICE) if entropy else None,
        coefficient=coefficient,
    )
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[out.dtype]
    torch.testing.assert_close(out.cpu().double(), expected, atol=tolerance, rtol=tolerance)
    if out_dtype is not None:
        assert (around[:, [0, -1]] == 7).all(), "written outside of the tile"


def test_a_likely_target_keeps_its_small_gradient():
    """p − 1 is taken in float32: in bfloat16 p = 0.9995 would be 1 and the gradient 0."""
    tile = torch.tensor([[8.0, 0.0]], dtype=torch.bfloat16, device=DEVICE)
    _, log_sum_exp, p, _ = exact(tile, 1.0)
    softmax.write_gradient(tile, tile, torch.tensor([0], device=DEVICE), log_sum_exp.float().to(DEVICE), 0, 1.0)
    assert float(tile[0, 0]) == pytest.approx(float(p[0, 0] - 1), rel=1e-2)


def test_nothing_to_do():
    empty = torch.zeros(0, 5, device=DEVICE)
    softmax.update_statistics(empty, torch.zeros(0, dtype=torch.long), torch.zeros(3, 0, device=DEVICE), 0, 1.0)
    softmax.write_gradient(empty, empty, torch.zeros(0, dtype=torch.long), torch.zeros(0, device=DEVICE), 0, 1.0)
