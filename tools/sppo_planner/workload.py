"""How much one iteration generates and trains, as numbers, from a configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sppo_megatron.config import Config
from sppo_megatron.objective.registry import objective_class
from sppo_planner.cluster import Assumptions
from sppo_planner.parallel_sizes import ParallelSizes

_FALLBACK_PROMPTS = 32  # of an iteration, if a replay trains on whole files


@dataclass(frozen=True)
class Workload:
    """sequences: of one iteration. minibatch: sequences of an optimizer step. prompt, response: tokens of the longest.

    mean_response: tokens. micro_batch: tokens of the largest micro-batch, over all context-parallel ranks; rows: its
    sequences side by side, 1 if they are packed one after the other.
    """

    prompts: int
    sequences: int
    minibatch: int
    epochs: int
    prompt: int
    response: int
    mean_response: float
    micro_batch: int
    rows: int
    packed: bool

    @classmethod
    def of(cls, config: Config, assumptions: Assumptions) -> Workload:
        prompt, response = (
            config.data.max_prompt_length or assumptions.prompt_length,
            config.rollout.max_response_length,
        )
        prompts = config.train.prompts_per_iteration or _FALLBACK_PROMPTS
        units = objective_class(vars(config.objective)).units
        sequences = prompts * units.sequences_of_group(config.rollout.num_samples_per_prompt)
        budget, length = config.train.max_tokens_per_micro_batch, prompt + response
        rows = 1 if budget else config.train.micro_batch_size
        return cls(
            prompts=prompts,
            sequences=sequences,
            minibatch=min(sequences, config.train.minibatch_size or sequences),
            epochs=config.train.epochs_per_iteration,
            prompt=prompt,
            response=response,
            mean_response=response * assumptions.mean_length,
            micro_batch=max(budget, length) if budget else rows * length,
            rows=rows,
            packed=budget is not None,
        )

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return self.prompt + self.response

    @property
    def steps(self) -> int:
        """Optimizer steps of an iteration."""
        return math.ceil(self.sequences / self.minibatch) * self.epochs

    def micro_batches(self, sizes: ParallelSizes, sequences: int) -> int:
        """Of one replica, for so many sequences over all replicas. Rows are padded to the longest."""
        share = sequences / sizes.dp
        if self.packed:
            count = math.ceil(share * (self.prompt + self.mean_response) / self.micro_batch)
        else:
            count = math.ceil(share / self.rows)
        multiple = sizes.pp if sizes.vpp > 1 else 1  # the interleaved schedule asks for it
        return math.ceil(count / multiple) * multiple
