"""Drawing tokens from logits so that a sample depends on its seed alone, not on its batch or its rank."""

from __future__ import annotations

import torch
from torch import Tensor

from sppo_megatron.types import SamplingParams


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
