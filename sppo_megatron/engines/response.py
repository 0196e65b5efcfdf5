"""From what a model sampled to a Response."""

from __future__ import annotations

from typing import Any

import numpy as np

from sppo_megatron.types import Response, SamplingParams


def make_response(
    token_ids: np.ndarray, log_probs: np.ndarray, params: SamplingParams, tokenizer: Any | None
) -> Response:
    """token_ids: int32 [n], with the stop token where one was reached. log_probs: float32 [n], nats."""
    stopped = len(token_ids) > 0 and int(token_ids[-1]) in params.stop_token_ids
    text = None if tokenizer is None else tokenizer.decode(token_ids.tolist(), skip_special_tokens=True)
    return Response(token_ids, text, log_probs, finish_reason="stop" if stopped else "length")
