"""The objective's keys together."""

from __future__ import annotations

from collections.abc import Iterator

from sppo_megatron.config import Config


def check_objective(config: Config) -> Iterator[str]:
    o, k = config.objective, config.rollout.num_samples_per_prompt
    if (o.eta is None) == (o.tau is None):
        yield (
            f"objective.eta={o.eta} and objective.tau={o.tau}: give exactly one of them (τ = 1/η); "
            "set the other to null"
        )
    for name, value in (("eta", o.eta), ("tau", o.tau)):
        if value is not None and not value > 0:
            yield f"objective.{name}={value} must be above 0"
    if o.sequence_weight is not None and o.loss_agg_mode != "seq-mean-token-sum":
        yield "objective.sequence_weight and objective.loss_agg_mode say the same thing: give one of them"
    generates = config.rollout.engine != "replay"
    leaves_one_out = o.baseline.startswith("loo_") or (
        o.reward == "win_rate" and o.win_rate_estimator == "leave_one_out"
    )
    if generates and k < 2 and leaves_one_out:
        yield f"leaving one out needs rollout.num_samples_per_prompt of at least 2, not {k}"
    if o.pairwise is not None:
        if o.pairwise in ("dpo", "ipo") and o.beta is None:
            yield f"objective.pairwise={o.pairwise} needs objective.beta"
        if o.pairwise not in ("dpo", "ipo") and o.beta is not None:
            yield f"objective.pairwise={o.pairwise} takes objective.eta: set objective.beta=null"
        if o.pairwise == "sppo" and o.reward != "win_rate":
            yield "objective.pairwise=sppo regresses onto win rates: set objective.reward=win_rate"
        packed = config.train.max_tokens_per_micro_batch is not None  # then micro_batch_size is not read
        for key in ("minibatch_size",) if packed else ("minibatch_size", "micro_batch_size"):
            size = getattr(config.train, key)
            if size is not None and size % 2:
                yield f"train.{key}={size} must be even: a pair is two sequences"
