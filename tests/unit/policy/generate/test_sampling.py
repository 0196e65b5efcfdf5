"""Sampling against the distribution it claims to sample from.

Uniforms on an equidistant grid make the counts of tokens deterministic: a token of probability p owns an interval of
length p, which holds n·p grid points, give or take one.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from sppo_megatron.engines.base import sample_uniforms
from sppo_megatron.policy.generate.sampling import sample_tokens
from sppo_megatron.types import SamplingParams

FAST = settings(max_examples=60, deadline=None)
LAST_UNIFORM = float(np.nextafter(1.0, 0.0))


def params(**fields) -> SamplingParams:
    return SamplingParams(max_new_tokens=1, **fields)


def slow_distribution(logits: list[float], p: SamplingParams) -> np.ndarray:
    """float64 [V]: temperature, then the k largest (ties with the k-th stay), then the smallest set that reaches p."""
    scaled = np.asarray(logits, np.float64) / p.temperature
    keep = np.isfinite(scaled)
    if p.top_k > 0:
        keep &= scaled >= sorted(scaled, reverse=True)[min(p.top_k, len(scaled)) - 1]
    weights = np.where(keep, np.exp(scaled - scaled[keep].max()), 0.0)
    if p.top_p < 1:
        reached, chosen = 0.0, []
        for token in sorted(range(len(weights)), key=lambda i: (-weights[i], i)):
            if reached >= p.top_p * weights.sum():
                break
            chosen.append(token)
            reached += weights[token]
        weights = np.where(np.isin(np.arange(len(weights)), chosen), weights, 0.0)
    return weights / weights.sum()


def draw_over_grid(logits: list[float], p: SamplingParams, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(counts [V], log_probs [V], NaN where never drawn) over n equidistant uniforms."""
    uniforms = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    tokens, log_probs = sample_tokens(torch.tensor(logits).expand(n, -1), uniforms, p)
    assert tokens.dtype == torch.int64 and log_probs.dtype == torch.float32
    of_token = np.full(len(logits), np.nan)
    of_token[tokens.numpy()] = log_probs.numpy()
    assert np.array_equal(of_token[tokens.numpy()], log_probs.numpy())  # one value for one token
    return np.bincount(tokens.numpy(), minlength=len(logits)), of_token


LOGITS = [1.0, -0.5, 2.0, 0.25, -3.0, 1.5]
CASES = [
    {},
    {"temperature": 0.5},
    {"temperature": 3.0},
    {"top_k": 1},
    {"top_k": 3},
    {"top_k": 100},
    {"top_p": 0.9},
    {"top_p": 0.5},
    {"top_p": 1e-6},
    {"temperature": 0.7, "top_k": 4, "top_p": 0.8},
]


@pytest.mark.parametrize("fields", CASES, ids=str)
def test_counts_equal_probabilities(fields):
    n = 4096
    p = params(**fields)
    expected = slow_distribution(LOGITS, p)
    counts, log_probs = draw_over_grid(LOGITS, p, n)
    assert np.abs(counts - n * expected).max() <= 1.0 + 1e-3
    assert (counts[expected == 0] == 0).all()
    drawn = counts > 0
    np.testing.assert_allclose(log_probs[drawn], np.log(expected[drawn]), rtol=2e-6, atol=2e-6)


@FAST
@given(
    logits=st.lists(st.integers(-6, 6).map(lambda i: i / 2), min_size=1, max_size=8),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.sampled_from([-1, 1, 2, 5]),
    top_p=st.sampled_from([1.0, 0.97, 0.61, 0.2]),
)
def test_any_distribution_with_ties(logits, temperature, top_k, top_p):
    p = params(temperature=temperature, top_k=top_k, top_p=top_p)
    expected = slow_distribution(logits, p)
    counts, log_probs = draw_over_grid(logits, p, 2048)
    assert np.abs(counts - 2048 * expected).max() <= 1.0 + 1e-3
    drawn = counts > 0
    np.testing.assert_allclose(log_probs[drawn], np.log(expected[drawn]), rtol=1e-5, atol=1e-5)


def test_random_uniforms_pass_chi_square():
    uniforms = torch.from_numpy(sample_uniforms((0, 0, 0), 0, 20_000))
    tokens, _ = sample_tokens(torch.tensor(LOGITS).expand(20_000, -1), uniforms, params())
    counts = np.bincount(tokens.numpy(), minlength=len(LOGITS))
    assert chisquare(counts, 20_000 * slow_distribution(LOGITS, params())).pvalue > 0.01
    assert chisquare(counts, 20_000 * slow_distribution(LOGITS, params(temperature=1.1))).pvalue < 1e-6


def test_ties_at_the_top_k_threshold_all_stay():
    counts, _ = draw_over_grid([0.0, 1.0, 1.0, 1.0, 2.0], params(top_k=2), 1000)
    assert (counts > 0).tolist() == [False, True, True, True, True]


def test_ties_at_the_top_p_border_go_to_the_lowest_tokens():
    """Of 64 equal tokens the first half reaches 1/2 exactly; a sort that is not stable would take any of them."""
    counts, _ = draw_over_grid([0.0] * 64, params(top_p=0.5), 6400)
    assert counts.tolist() == [200] * 32 + [0] * 32


def test_top_p_keeps_the_token_that_crosses():
    logits = [math.log(0.5), math.log(0.3), math.log(0.2)]
    for top_p, support in ((0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3)):
        counts, _ = draw_over_grid(logits, params(top_p=top_p), 1000)
        assert (counts > 0).sum() == support


def test_greedy():
    logits = torch.tensor([LOGITS, LOGITS[::-1], [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    tokens, log_probs = sample_tokens(logits, torch.tensor([0.0, 0.5, LAST_UNIFORM]), params(temperature=0.0))
    assert tokens.tolist() == [2, 3, 0]
    expected = [
        np.log(slow_distribution(row, params()))[token] for row, token in zip(logits.tolist(), tokens, strict=True)
    ]
    np.testing.assert_allclose(log_probs.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_impossible_tokens_are_never_drawn(dtype):
    inf = math.inf
    rows = [
        [-inf, 0.0, 0.0, -inf],
        [-inf, -inf, 1.0, -inf],
        [0.0, -inf, -inf, -inf],
        [-300.0, 0.0, -300.0, -300.0],  # underflows to probability 0
    ]
    uniforms = [0.0, 5e-324, 0.25, 0.5, LAST_UNIFORM]
    logits = torch.tensor([row for row in rows for _ in uniforms], dtype=dtype)
    tokens, log_probs = sample_tokens(logits, torch.tensor(uniforms * len(rows), dtype=torch.float64), params())
    assert torch.isfinite(log_probs).all()
    by_row = tokens.view(len(rows), -1).tolist()
    assert by_row == [[1, 1, 1, 2, 2], [2] * 5, [0] * 5, [1] * 5]


def test_the_last_uniform_stays_inside_over_large_vocabularies():
    """The sum of float32 probabilities is not 1; the draw is scaled by it, so it never falls behind the last token."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 5000, generator=generator) * 3
    logits[:, -7:] = -torch.inf
    tokens, log_probs = sample_tokens(logits, torch.full((64,), LAST_UNIFORM, dtype=torch.float64), params())
    assert torch.isfinite(log_probs).all()
    assert (tokens < 4993).all()


def test_a_row_does_not_depend_on_its_batch():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(16, 300, generator=generator)
    uniforms = torch.rand(16, generator=generator, dtype=torch.float64)
    for fields in CASES:
        together = sample_tokens(logits, uniforms, params(**fields))
        for row in range(16):
            alone = sample_tokens(logits[row : row + 1], uniforms[row : row + 1], params(**fields))
            assert torch.equal(alone[0], together[0][row : row + 1])
            torch.testing.assert_close(alone[1], together[1][row : row + 1], rtol=1e-6, atol=1e-6)


def test_uniforms_are_a_pure_function_of_their_place():
    base = sample_uniforms((1, 2, 3), 4, 100)
    assert base.dtype == np.float64 and base.shape == (100,)
    assert (base >= 0).all() and (base < 1).all()
    assert np.array_equal(base, sample_uniforms((1, 2, 3), 4, 100))
    assert np.array_equal(base[:10], sample_uniforms((1, 2, 3), 4, 10))  # a longer limit changes nothing before it
    places = [(1, 2, 3, 5), (1, 2, 4, 4), (1, 3, 3, 4), (2, 2, 3, 4), (4, 3, 2, 1), (1, 2, 34, 0), (1, 23, 4, 0)]
    places += [(1, 2, 3, 4, 1, 0), (1, 2, 3, 4, 2, 0)]  # later turns of the same sample
    draws = [sample_uniforms((*request,), sample, 100) for *request, sample in places]
    assert len({tuple(draw) for draw in [base, *draws]}) == len(places) + 1
