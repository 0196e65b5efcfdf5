"""What the trainer needs of a rollout engine."""

from __future__ import annotations

from typing import Protocol

from sppo_megatron.types import Group, Prompt, Response


class RolloutEngine(Protocol):
    """Makes groups of responses. Every rank calls it, with the same arguments, in the same order.

    needs_prompts: False where the prompts come with the groups (a replay); `generate` then ignores its prompts, and the
    trainer passes an empty list.
    """

    needs_prompts: bool

    def generate(self, prompts: list[Prompt], iteration: int) -> list[Group]:
        """One group per prompt, in prompt order, the same on every rank.

        iteration: counted from 0. Samples are a function of the weights, the engine's seed, the iteration and a
        prompt's place in `prompts` (the same prompt may come twice), never of the parallel layout, and engines keep no
        state between iterations: a resumed run samples what the uninterrupted one would have.

        Of each response: token_ids with the end token, where there is one; text decoded without special tokens;
        rollout_log_probs in nats under the distribution sampled from (temperature applied); finish_reason. Rewards are
        left unset, except by engines that replay them.
        """
        ...

    def close(self) -> None:
        """Gives processes and memory back. The engine is not used afterwards."""
        ...


class ProbedEngine(RolloutEngine, Protocol):
    """An engine with weights of its own, which can be looked at."""

    def probe(self, prompt: Prompt) -> list[tuple[str, Response]]:
        """(name, response) of every replica, sampled as in training; the same on every rank. Collective."""
        ...


class AheadEngine(RolloutEngine, Protocol):
    """An engine that works while the trainer does."""

    def start(self, prompts: list[Prompt], iteration: int) -> None:
        """Begins to generate in the background, from the weights of now. Collective, as are all methods."""
        ...

    def finish(self) -> list[Group]:
        """Waits for what `start` began; its groups, with the policy version they are of."""
        ...
