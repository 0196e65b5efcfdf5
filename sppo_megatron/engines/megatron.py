"""Rollouts by the trainer's own model, in process: no second copy of the weights, nothing to sync."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from sppo_megatron.engines.kind import EngineKind
from sppo_megatron.engines.response import make_response
from sppo_megatron.engines.seeds import sample_uniforms
from sppo_megatron.types import Group, Prompt, SamplingParams

MEGATRON = EngineKind(name="megatron", has_own_weights=False, in_ranks=True)


class TokenGenerator(Protocol):
    """A model that continues token sequences, spread over ranks as it likes. Every rank calls it and gets all."""

    def generate(
        self, prompts: Sequence[np.ndarray], uniforms: Sequence[np.ndarray], params: SamplingParams, batch_size: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """(token_ids int32, log_probs float32) of each continuation, the stop token included where it was reached."""
        ...


class MegatronEngine:
    """K samples for each prompt from a TokenGenerator. batch_size: sequences generated at a time on one replica."""

    needs_prompts = True

    def __init__(
        self,
        generator: TokenGenerator,
        tokenizer: Any | None,
        params: SamplingParams,
        *,
        num_samples_per_prompt: int,
        seed: int,
        batch_size: int,
    ):
        self._generator = generator
        self._tokenizer = tokenizer
        self._params = params
        self._samples = num_samples_per_prompt
        self._seed = seed
        self._batch_size = batch_size

    def generate(self, prompts: list[Prompt], iteration: int) -> list[Group]:
        """See RolloutEngine."""
        places = [(place, sample) for place in range(len(prompts)) for sample in range(self._samples)]
        uniforms = [
            sample_uniforms(self._seed, iteration, place, sample, self._params.max_new_tokens)
            for place, sample in places
        ]
        sequences = [prompts[place].token_ids for place, _ in places]
        results = self._generator.generate(sequences, uniforms, self._params, self._batch_size)
        groups = [Group(prompt) for prompt in prompts]
        for (place, _), (token_ids, log_probs) in zip(places, results, strict=True):
            groups[place].responses.append(make_response(token_ids, log_probs, self._params, self._tokenizer))
        return groups

    def close(self) -> None:
        """Nothing is held open."""
