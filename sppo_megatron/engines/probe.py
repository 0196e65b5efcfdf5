"""A look at the weights that the rollout engine samples from: its log-probs of a probe prompt beside the trainer's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sppo_megatron.batch.sequences import Sequences, make_sequences
from sppo_megatron.engines.base import Engine, Request
from sppo_megatron.errors import TrainingError
from sppo_megatron.types import SamplingParams

# mean |difference| in nats per token that rounding explains
BOUNDS = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}


@dataclass(frozen=True)
class WeightProbe:
    """bound: mean |difference| in nats per token that is still taken for rounding."""

    engine: Engine
    request: Request
    params: SamplingParams
    bound: float

    def check(self, compute_log_probs: Callable[[Sequences], tuple[np.ndarray, float]]) -> float:
        """The largest mean |difference| of a replica. Collective.

        Raises TrainingError, naming the replica, if it has other weights than the trainer.
        """
        probes = self.engine.probe(self.request, self.params)
        found = [continuation.token_ids for _, continuation in probes]
        sequences = make_sequences([self.request.token_ids], found, prompt_of=[0] * len(found))
        log_probs, _ = compute_log_probs(sequences)
        largest = 0.0
        for (name, continuation), ours in zip(probes, sequences.split(log_probs), strict=True):
            if not len(ours):
                raise TrainingError(f"{name} returned no log-probs of the probe prompt")
            difference = float(np.abs(ours - continuation.log_probs).mean())
            if not difference <= self.bound:
                raise TrainingError(
                    f"{name} samples from other weights than the trainer's: its log-probs of a probe prompt differ by "
                    f"{difference:.3g} nats per token (bound {self.bound:g})"
                )
            largest = max(largest, difference)
        return largest
