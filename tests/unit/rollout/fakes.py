"""An engine without a model: its samples are a hash of the request, the sample's number and the weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from sppo_megatron.engines.base import Continuation, Deferred, Engine, Pending, Request
from sppo_megatron.types import SamplingParams

STOP = 0


class CountingEngine(Engine):
    """Answers with `length` tokens, the last one a stop token if `stops` says so. Remembers what it was asked."""

    def __init__(self, length: int = 2, stops: Callable[[Request], bool] = lambda request: True) -> None:
        self.length = length
        self.stops = stops
        self.asked: list[Sequence[Request]] = []
        self.calls: list[str] = []

    def start(self, requests: Sequence[Request], params: SamplingParams) -> Pending:
        self.asked.append(requests)
        self.calls.append("start")
        version = self.weight_version
        return Deferred(lambda: [[self._sample(r, k, params, version) for k in range(r.num_samples)] for r in requests])

    def load_weights(self, weights: Iterator, version: int) -> int:
        self.calls.append(f"load {version}")
        self.weight_version = version
        return 8

    def sleep(self) -> None:
        self.calls.append("sleep")

    def _sample(self, request: Request, number: int, params: SamplingParams, version: int) -> Continuation:
        source = f"{request.token_ids.tolist()} {request.seed} {number} {version}"
        digest = hashlib.sha256(source.encode()).digest()
        room = request.limited(params).max_new_tokens
        tokens = np.array([10 + byte % 50 for byte in digest[: min(self.length, room)]], np.int32)
        stopped = self.length <= room and self.stops(request)
        if stopped:
            tokens[-1] = STOP
        log_probs = -np.array([1 + byte for byte in digest[8 : 8 + len(tokens)]], np.float32) / 256
        return Continuation(tokens, log_probs, "stop" if stopped else "length", version)
