"""Samples by the trainer's own model, in process: no second copy of the weights, nothing to push."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from sppo_megatron.engines.base import Continuation, Deferred, Engine, Pending, Request, sample_uniforms
from sppo_megatron.engines.kind import EngineKind, Surroundings
from sppo_megatron.types import SamplingParams

if TYPE_CHECKING:
    from torch import Tensor


class TokenGenerator(Protocol):
    """A model that continues token sequences, spread over ranks as it likes. Every rank calls it and gets all."""

    def generate(
        self,
        prompts: Sequence[np.ndarray],
        uniforms: Callable[[int], np.ndarray],
        params: SamplingParams,
        batch_size: int,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """(token_ids int32, log_probs float32) of each continuation, the stop token included if it was reached.

        uniforms: float64 [max_new_tokens] of a place in prompts; asked for where that prompt is continued.
        """
        ...


class MegatronEngine(Engine):
    """generator: called once, at the first samples: the engine is built before the model is.

    batch_size: sequences generated at a time on one replica.
    """

    def __init__(self, generator: Callable[[], TokenGenerator], batch_size: int) -> None:
        self._make_generator = generator
        self._generator: TokenGenerator | None = None
        self._batch_size = batch_size

    def start(self, requests: Sequence[Request], params: SamplingParams) -> Pending:
        """See Engine."""
        version = self.weight_version
        return Deferred(lambda: self._sample(requests, params, version))

    def load_weights(self, weights: Iterator[tuple[str, Tensor]], version: int) -> int:
        """Records the version: the optimizer steps the very parameters that are sampled from. The iterator is never
        started: exporting would gather every shard for nothing."""
        if version < self.weight_version:
            raise ValueError(f"weights of version {version} are older than version {self.weight_version}")
        self.weight_version = version
        return 0

    def _sample(self, requests: Sequence[Request], params: SamplingParams, version: int) -> list[list[Continuation]]:
        if self._generator is None:
            self._generator = self._make_generator()
        samples = [(request, number) for request in requests for number in range(request.num_samples)]
        sequences = [request.token_ids for request, _ in samples]

        def uniforms(place: int) -> np.ndarray:
            request, number = samples[place]
            return sample_uniforms(request.seed, number, params.max_new_tokens)

        sampled = iter(self._generator.generate(sequences, uniforms, params, self._batch_size))
        return [
            [_cut(*next(sampled), request, params, version) for _ in range(request.num_samples)] for request in requests
        ]


def _cut(
    token_ids: np.ndarray, log_probs: np.ndarray, request: Request, params: SamplingParams, version: int
) -> Continuation:
    """All sequences of a batch are generated under one limit; a request's own is applied afterwards."""
    limit = request.limited(params).max_new_tokens
    return Continuation.of(token_ids[:limit], log_probs[:limit], params, version)


def _build(around: Surroundings) -> Engine:
    return MegatronEngine(around.generator, around.config.rollout.batch_size)


MEGATRON = EngineKind(name="megatron", build=_build, has_own_weights=False, in_ranks=True)
