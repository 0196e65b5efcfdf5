"""Evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sppo_megatron.config.keys import AtLeastOne, Finite, Free, NotNegative

if TYPE_CHECKING:
    from sppo_megatron.config.schema import Config


@dataclass
class EvalConfig:
    """Evaluation on data.eval_path or data.eval_sources, before the first iteration, after the last, and in between."""

    interval: Free[NotNegative[int]] = 0
    "Iterations between evaluations; 0 = only the first and the last."
    num_samples_per_prompt: Free[AtLeastOne[int]] = 1
    "Responses to each prompt; with several, pass@k and maj@k are measured."
    temperature: Free[NotNegative[float]] = 0.0
    "Of the responses; 0 = greedy decoding."
    right_reward: Free[Finite[float] | None] = None
    "The reward from which on an answer is right; null = those that the reward calls right, or 1 if it doesn't say."


def check_held_out(config: Config) -> Iterator[str]:
    """What an evaluation without a training needs."""
    if config.data.eval_path is None and not config.data.eval_sources:
        yield "there is nothing to evaluate on: give data.eval_path or data.eval_sources"
    if config.eval.num_samples_per_prompt > 1 and config.eval.temperature == 0:
        yield (
            f"eval.num_samples_per_prompt={config.eval.num_samples_per_prompt} greedy answers are all the same one: "
            "give eval.temperature"
        )
