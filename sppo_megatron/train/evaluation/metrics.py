"""What an evaluation says of its answers: of all together, and of each evaluation set that has a name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sppo_megatron.train.evaluation.measures import Estimate, Right, mean_reward, measures_of_samples, share
from sppo_megatron.types import Group


@dataclass(frozen=True)
class Findings:
    """Of one evaluation set. estimates: reward_mean; exact_match if the reward calls every answer right or wrong;
    pass_at_K and maj_at_K of several answers to a prompt. counts: reward_errors, the answers that couldn't be scored,
    response_length_mean in tokens, and truncation_rate, the share of answers cut off at the length limit.
    """

    estimates: dict[str, Estimate]
    counts: dict[str, float]

    def metrics(self) -> dict[str, float]:
        """As metrics.jsonl has them: eval_NAME, and of estimates eval_NAME_low and eval_NAME_high."""
        found = {f"eval_{name}": value for name, value in self.counts.items()}
        for name, estimate in self.estimates.items():
            found[f"eval_{name}"] = estimate.value
            if estimate.low is not None and estimate.high is not None:
                found |= {f"eval_{name}_low": estimate.low, f"eval_{name}_high": estimate.high}
        return found


def findings_of(groups: Sequence[Group], right: Right | None) -> Findings:
    """Of scored groups. right: None if no answer is right or wrong, as under preferences."""
    responses = [response for group in groups for response in group.responses]
    estimates = {"reward_mean": mean_reward(groups)}
    if all(response.correct is not None for response in responses):
        estimates["exact_match"] = share(groups, lambda response: response.correct)
    if right is not None:
        estimates |= measures_of_samples(groups, right)
    counts = {
        "reward_errors": float(sum(response.error is not None for response in responses)),
        "response_length_mean": float(np.mean([len(response.token_ids) for response in responses])),
        "truncation_rate": float(np.mean([response.finish_reason == "length" for response in responses])),
    }
    return Findings(estimates, counts)


def findings_by_set(groups: Sequence[Group], right: Right | None) -> dict[str | None, Findings]:
    """None: of all groups. Then those of each source that has a name, in the order of the names."""
    names = sorted({group.prompt.source for group in groups if group.prompt.source is not None})
    of_names = {name: [group for group in groups if group.prompt.source == name] for name in names}
    return {None: findings_of(groups, right)} | {name: findings_of(each, right) for name, each in of_names.items()}


def evaluation_metrics(by_set: dict[str | None, Findings]) -> dict[str, float]:
    """One line of metrics.jsonl; a metric of one set ends in /NAME."""
    return {
        key if name is None else f"{key}/{name}": value
        for name, findings in by_set.items()
        for key, value in findings.metrics().items()
    }
