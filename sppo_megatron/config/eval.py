"""Evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from sppo_megatron.config.keys import AtLeastOne, Finite, Free, NotNegative


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
