"""Held-out prompts, answered by the current policy and scored like the training responses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sppo_megatron.reward.share import Scorer, score_over_ranks
from sppo_megatron.rollout.protocol import RolloutEngine
from sppo_megatron.types import Prompt


@dataclass(frozen=True)
class Evaluator:
    """The engine samples as configured for evaluation; its seeds do not depend on when it is asked."""

    engine: RolloutEngine
    scorer: Scorer
    prompts: list[Prompt]

    def evaluate(self) -> dict[str, float]:
        """eval_reward_mean, eval_exact_match where the reward defines a right answer, and response statistics.

        The same on every rank. Collective.
        """
        groups = score_over_ranks(self.scorer, self.engine.generate(self.prompts, 0))
        responses = [response for group in groups for response in group.responses]
        metrics = {
            "eval_reward_mean": float(np.mean([response.reward for response in responses])),
            "eval_response_length_mean": float(np.mean([len(response.token_ids) for response in responses])),
            "eval_truncation_rate": float(np.mean([response.finish_reason == "length" for response in responses])),
        }
        if all(response.correct is not None for response in responses):
            metrics["eval_exact_match"] = float(np.mean([bool(response.correct) for response in responses]))
        return metrics
