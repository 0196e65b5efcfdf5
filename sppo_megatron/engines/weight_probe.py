"""A look at the weights that the rollout engine samples from: its log-probs of a probe prompt beside the trainer's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sppo_megatron.batch.sequences import Sequences, make_sequences
from sppo_megatron.engines.base import ProbedEngine
from sppo_megatron.errors import TrainingError
from sppo_megatron.types import Prompt

# mean |difference| in nats per token that rounding explains
BOUNDS = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}


@dataclass(frozen=True)
class WeightProbe:
    """bound: mean |difference| in nats per token that is still taken for rounding."""

    engine: ProbedEngine
    prompt: Prompt
    bound: float

    def check(self, compute_log_probs: Callable[[Sequences], tuple[np.ndarray, float]]) -> float:
        """The largest mean |difference| of a replica. Collective.

        Raises TrainingError, naming the replica, if it has other weights than the trainer.
        """
        probes = self.engine.probe(self.prompt)
        responses = [response.token_ids for _, response in probes]
        sequences = make_sequences([self.prompt.token_ids], responses, prompt_of=[0] * len(responses))
        log_probs, _ = compute_log_probs(sequences)
        largest = 0.0
        for (name, response), ours in zip(probes, sequences.split(log_probs), strict=True):
            theirs = response.rollout_log_probs
            if theirs is None or not len(ours):
                raise TrainingError(f"{name} returned no log-probs of the probe prompt")
            difference = float(np.abs(ours - theirs).mean())
            if not difference <= self.bound:
                raise TrainingError(
                    f"{name} samples from other weights than the trainer's: its log-probs of a probe prompt differ by "
                    f"{difference:.3g} nats per token (bound {self.bound:g})"
                )
            largest = max(largest, difference)
        return largest
