"""Engines sample: requests of token ids go in, continuations with log-probs come out. They know no text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from sppo_megatron.types import SamplingParams

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Request:
    """token_ids: int32 [n], what is continued, num_samples times.

    seed: (rollout.seed, iteration, place), then (sample, turn) after an environment has answered. The randomness of a
    sample is a pure function of it and of the sample's number. max_new_tokens: fewer than the SamplingParams allow.
    """

    token_ids: np.ndarray
    seed: tuple[int, ...]
    num_samples: int = 1
    max_new_tokens: int | None = None

    def limited(self, params: SamplingParams) -> SamplingParams:
        """params under this request's own limit."""
        return params if self.max_new_tokens is None else replace(params, max_new_tokens=self.max_new_tokens)


@dataclass(frozen=True, eq=False)
class Continuation:
    """token_ids: int32 [n], the stop token included if one was reached. log_probs: float32 [n] nats, of the
    distribution that was sampled from (after temperature). finish_reason: "stop" or "length". weight_version: of the
    weights that it was sampled from, -1 if they were never pushed.
    """

    token_ids: np.ndarray
    log_probs: np.ndarray
    finish_reason: str
    weight_version: int

    @staticmethod
    def of(token_ids: np.ndarray, log_probs: np.ndarray, params: SamplingParams, weight_version: int) -> Continuation:
        """Says by the last token whether it stopped."""
        stopped = len(token_ids) > 0 and int(token_ids[-1]) in params.stop_token_ids
        return Continuation(token_ids, log_probs, "stop" if stopped else "length", weight_version)


def sample_uniforms(seed: tuple[int, ...], sample: int, count: int) -> np.ndarray:
    """float64 [count] in [0, 1). A longer one begins with a shorter one."""
    return np.random.default_rng([*seed, sample]).random(count)


def request_seed(seed: tuple[int, ...]) -> int:
    """One integer below 2⁴⁸ for all samples of a request. Sample k adds k to it."""
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(16))


class Pending(Protocol):
    """Work that was started."""

    def result(self) -> list[list[Continuation]]:
        """The samples of each request, in order, the same on every rank. Collective. Called once.

        Raises Interrupted, the same on every rank, if the job is told to stop meanwhile.
        """
        ...


@dataclass(frozen=True)
class Deferred:
    """Work that begins when its result is asked for: of engines that share the trainer's processes."""

    work: Callable[[], list[list[Continuation]]]

    def result(self) -> list[list[Continuation]]:
        """See Pending."""
        return self.work()


class Engine(Protocol):
    """Who samples. Every rank makes the same calls with the same arguments in the same order.

    Samples are a function of the weights, the request and the parameters, never of the parallel layout or of other
    requests; an engine keeps no state between calls but its weights.
    weight_version: of the weights that the next sample comes from, -1 before the first load. It never goes back.
    """

    weight_version: int = -1

    def start(self, requests: Sequence[Request], params: SamplingParams) -> Pending:
        """Begins to sample from the weights of now: in the background if the engine can, else at `result`."""
        ...

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Continuation]]:
        """The samples of each request, in order, the same on every rank."""
        return self.start(requests, params).result()

    def load_weights(self, weights: Iterator[tuple[str, Tensor]], version: int) -> int:
        """Takes the policy's weights; when it returns, the next sample comes from them.

        weights: (Hugging Face name, whole tensor) one at a time, in the policy's dtype, so that a model never exists
        twice. Iterating runs collectives: all ranks iterate to the end or none starts. Afterwards an engine on the
        trainer's own GPUs is asleep.
        Returns the bytes that one replica received. Every replica has told the version and the checksum of what it
        loaded. Raises ValueError if the version is older than the one before, and TrainingError, the same on every
        rank, naming the replica that has other weights than were sent.
        """
        ...

    def probe(self, request: Request, params: SamplingParams) -> list[tuple[str, Continuation]]:
        """(name, one continuation) of every replica with weights of its own; none if it has none of its own."""
        return []

    def sleep(self) -> None:
        """Gives the device's memory to the trainer, if it holds any: whoever has sampled calls it. The next call that
        needs the memory takes it back."""
        return

    def wake(self) -> None:
        """Takes the device's memory back ahead of the next call."""
        return

    def close(self) -> None:
        """Gives processes and memory back. The engine is not used afterwards."""
        return
