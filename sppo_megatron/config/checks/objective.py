"""The objective's keys together."""

from __future__ import annotations

from collections.abc import Iterator

from sppo_megatron.config import Config

_NEED_BETA = ("dpo", "spin", "ipo")


def check_objective(config: Config, generates: bool) -> Iterator[str]:
    """generates: whether responses are sampled; False if stored ones are read."""
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
    leaves_one_out = o.baseline.startswith("loo_") or (
        o.reward == "win_rate" and o.win_rate_estimator == "leave_one_out"
    )
    if generates and k < 2 and leaves_one_out:
        yield f"leaving one out needs rollout.num_samples_per_prompt of at least 2, not {k}"
    if o.pairwise is not None:
        yield from _check_pairwise(config, generates)
    if (o.pairwise == "spin") != (config.data.response_key is not None) and generates:
        yield (
            "objective.pairwise=spin and data.response_key belong together: the human responses under that key are "
            "SPIN's winners. Give both or neither"
        )
    if o.ref_coef and o.pairwise != "inpo":
        yield f"objective.ref_coef={o.ref_coef:g} is of objective.pairwise=inpo: set it to 0"
    if not 0 <= o.ref_coef <= 1:
        yield f"objective.ref_coef={o.ref_coef:g} is INPO's τ/η: it must be in [0, 1]"
    if o.ref_coef and config.precision.fp8_param:
        yield "objective.ref_coef above 0 swaps weights, which FP8 ones lose digits by: set precision.fp8_param=false"


def _check_pairwise(config: Config, generates: bool) -> Iterator[str]:
    o = config.objective
    if o.pairwise in _NEED_BETA and o.beta is None:
        yield f"objective.pairwise={o.pairwise} needs objective.beta"
    if o.pairwise not in _NEED_BETA and o.beta is not None:
        yield f"objective.pairwise={o.pairwise} takes objective.eta: set objective.beta=null"
    if o.pairwise == "sppo" and o.reward != "win_rate":
        yield "objective.pairwise=sppo regresses onto win rates: set objective.reward=win_rate"
    if (o.sequence_weight or o.loss_agg_mode) not in ("none", "seq-mean-token-sum", "token-mean"):
        yield "sequence weights are for single responses: with objective.pairwise, set sequence_weight=none"
    k = config.rollout.num_samples_per_prompt
    if generates and k < 2 and o.pairwise != "spin":
        yield f"a pair is two responses of a prompt: rollout.num_samples_per_prompt={k} must be at least 2"
    packed = config.train.max_tokens_per_micro_batch is not None  # then micro_batch_size is not read
    for key in ("minibatch_size",) if packed else ("minibatch_size", "micro_batch_size"):
        size = getattr(config.train, key)
        if size is not None and size % 2:
            yield f"train.{key}={size} must be even: a pair is two sequences. Set it to {size + 1}"
