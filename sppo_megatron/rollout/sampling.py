"""Drawing tokens from logits so that a sample depends on its seed alone, not on its batch or its rank."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingParams:
    """temperature 0 is greedy. top_p = 1 and top_k = -1 keep the full vocabulary. Sequences end at a stop token."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    stop_token_ids: frozenset[int] = field(default_factory=frozenset)


def sample_uniforms(seed: int, iteration: int, place: int, sample: int, count: int) -> np.ndarray:
    """float64 [count] in [0, 1): the randomness of one response, a pure function of the four integers."""
    return np.random.default_rng([seed, iteration, place, sample]).random(count)


def request_seed(seed: int, iteration: int, place: int) -> int:
    """The seed of one prompt's responses, below 2⁴⁸: a pure function of the three integers. Sample k adds k to it."""
    return int(np.random.SeedSequence([seed, iteration, place]).generate_state(1, np.uint64)[0] >> np.uint64(16))


def sample_tokens(logits: Tensor, uniforms: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """One token a row by inverting the cumulative distribution at `uniforms`.

    logits: [b, V] of the true vocabulary. uniforms: float64 [b]. Returns (tokens int64 [b], log_probs fp32 [b] in nats
    under the distribution that was sampled from: temperature, top_k and top_p applied; greedy: temperature 1).
    """
    if params.temperature == 0:
        log_probs = torch.log_softmax(logits.float(), dim=-1)
        tokens = log_probs.argmax(dim=-1)
        return tokens, log_probs.gather(1, tokens[:, None])[:, 0]
    logits = _truncate(logits.float() / params.temperature, params)
    log_probs = torch.log_softmax(logits, dim=-1)
    cumulative = log_probs.exp().cumsum(dim=-1, dtype=torch.float64)
    # right=True: the first entry *above* the draw, so a token of probability 0 is never taken.
    draws = (uniforms * cumulative[:, -1])[:, None]
    tokens = torch.searchsorted(cumulative, draws, right=True)[:, 0].clamp(max=logits.shape[1] - 1)
    return tokens, log_probs.gather(1, tokens[:, None])[:, 0]


def _truncate(logits: Tensor, params: SamplingParams) -> Tensor:
    """−inf outside the top_k and outside the smallest set of tokens whose probability reaches top_p."""
    if params.top_k > 0:
        threshold = logits.topk(min(params.top_k, logits.shape[1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if params.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)  # ties: the lower token first
        probabilities = ordered.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        logits = logits.masked_fill((before >= params.top_p).scatter(1, order, before >= params.top_p), -torch.inf)
    return logits
