"""Rollouts by vLLM inside the training ranks: engines over groups of ranks, prompts split over the engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.distributed as dist

from sppo_megatron.engines.response import make_response
from sppo_megatron.engines.seeds import request_seed
from sppo_megatron.engines.vllm.replica import VllmReplica
from sppo_megatron.types import Group, Prompt, Response, SamplingParams

Continuation = tuple[np.ndarray, np.ndarray]


class VllmEngine:
    """K samples of each prompt. Ranks r·tp to (r+1)·tp of `group` (the world where None) hold replica r together."""

    needs_prompts = True

    def __init__(
        self,
        replica: VllmReplica,
        tokenizer: Any | None,
        params: SamplingParams,
        *,
        num_samples_per_prompt: int,
        seed: int,
        tensor_parallel_size: int,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self._replica = replica
        self._tokenizer = tokenizer
        self._params = params
        self._samples = num_samples_per_prompt
        self._seed = seed
        self._tp = tensor_parallel_size
        self._group = group
        self._replicas = dist.get_world_size(group) // tensor_parallel_size
        self._index = dist.get_rank(group) // tensor_parallel_size

    def generate(self, prompts: list[Prompt], iteration: int) -> list[Group]:
        """See RolloutEngine. Between calls the engine gives the device's memory back to the trainer."""
        seeds = [request_seed(self._seed, iteration, place) for place in range(len(prompts))]
        bounds = np.linspace(0, len(prompts), self._replicas + 1).round().astype(int)
        mine = slice(bounds[self._index], bounds[self._index + 1])
        shares = self._of_each_replica([prompt.token_ids for prompt in prompts[mine]], seeds[mine], self._samples)
        sampled = [samples for share in shares for samples in share]
        return [
            Group(prompt, [self._response(sample) for sample in samples])
            for prompt, samples in zip(prompts, sampled, strict=True)
        ]

    def probe(self, prompt: Prompt) -> list[tuple[str, Response]]:
        """One response of every replica, with its name, for a look at the weights it samples from."""
        shares = self._of_each_replica([prompt.token_ids], [self._seed], 1)
        return [(f"vLLM replica {index}", self._response(share[0][0])) for index, share in enumerate(shares)]

    def close(self) -> None:
        """Nothing of its own: the replica is closed by who built it."""

    def _of_each_replica(
        self, prompts: Sequence[np.ndarray], seeds: Sequence[int], num_samples: int
    ) -> list[list[list[Continuation]]]:
        """What each replica sampled for its own prompts, in the replicas' order, on every rank."""
        mine = self._replica.generate(prompts, seeds, self._params, num_samples) if len(prompts) else []
        self._replica.sleep()
        everyone: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(everyone, mine, group=self._group)
        return everyone[:: self._tp]

    def _response(self, sample: Continuation) -> Response:
        return make_response(*sample, self._params, self._tokenizer)
