"""The objective, and whether its keys go together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Interval

from sppo_megatron.config.keys import Finite, NextIteration, NotNegative, Positive, written

if TYPE_CHECKING:
    from sppo_megatron.config.schema import Config


@dataclass
class ObjectiveConfig:
    """What is minimised. Exactly one of eta and tau is given."""

    eta: NextIteration[Positive[float] | None] = 1.0
    "SPPO's step size η; for pairwise=inpo the paper's, an inverse step size."
    tau: NextIteration[Positive[float] | None] = None
    "Kimi's temperature τ = 1/η."
    reward: NextIteration[Literal["reward", "win_rate"]] = "reward"
    "What is regressed onto: the reward itself, or the share of the group's responses that a response beats."
    win_rate_estimator: NextIteration[Literal["include_self", "leave_one_out"]] = "include_self"
    "Whether a response is compared with itself, too, as a tie."
    baseline: NextIteration[Literal["constant", "mean", "loo_mean", "log_partition", "loo_log_partition"]] = "constant"
    "What is subtracted from it: ½, the group's mean or log-partition, or those of the group's other responses."
    loss_agg_mode: NextIteration[Literal["seq-mean-token-sum", "seq-mean-token-mean", "token-mean"]] = (
        "seq-mean-token-sum"
    )
    "How sequences are weighted, by the names of other trainers; sequence_weight says it clearly."
    sequence_weight: NextIteration[Literal["none", "length", "max_length"] | None] = None
    "What a sequence's loss is divided by: nothing, its length, or the greatest length; null = as loss_agg_mode says."
    loss_scale: NextIteration[Literal["sppo", "kimi"]] = "sppo"
    "Constant factor of the loss: the paper's, or Kimi's."
    pairwise: NextIteration[
        Literal["sppo", "sppo_single", "sppo_hard", "dpo", "spin", "ipo", "rebel", "inpo"] | None
    ] = None
    "A loss over pairs of responses instead (kinds of `pairwise_loss`); null = the regression of single ones."
    beta: NextIteration[Positive[float] | None] = None
    "Strength of the pull towards the reference, for pairwise=dpo, spin and ipo, and for kto."
    ref_coef: NextIteration[Annotated[float, Interval(ge=0, le=1)]] = 0.0
    """INPO's τ/η: the share of the pull towards the policy that the run started from. Above 0 its weights are kept on
    the host."""
    target_clip: NextIteration[Positive[float] | None] = None
    "Bound on |target − log-ratio| in nats; null = none."
    importance_weight: NextIteration[Literal["sequence", "token"] | None] = None
    "Weight by trainer's over rollout's probability, of the whole response or token by token; null = none."
    importance_cap: NextIteration[Positive[float]] = 2.0
    "Importance weights are truncated here."
    length_reward_weight: NextIteration[Finite[float]] = 0.0
    "Weight of Kimi's length reward, which is added to the reward."
    name: NextIteration[str] = "sppo"
    """The objective: sppo (the regression family, or pairs if pairwise is set), grpo, gvpo, mnpo, sft, kto, or one of
    your own, function."""
    function: NextIteration[str | None] = None
    "`module:name` of your own objective, a loss function or a class, for name=function."
    options: NextIteration[dict[str, Any]] = field(default_factory=dict)
    "More values for the fields of your own objective's class."
    divide_by_std: NextIteration[bool] = True
    "Whether grpo's advantages are divided by the group's standard deviation."
    clip_low: NextIteration[Annotated[float, Interval(gt=0, lt=1)]] = 0.2
    "How far below 1 grpo clips the ratio of a token's probabilities."
    clip_high: NextIteration[Positive[float]] = 0.2
    "How far above 1 grpo clips it."
    token_agg: NextIteration[Literal["sequence-mean", "token-mean"]] = "sequence-mean"
    "The mean of grpo and sft: over responses of the mean over their tokens, or over all tokens of the mini-batch."
    kl_coef: NextIteration[NotNegative[float]] = 0.0
    """Weight of grpo's KL divergence to the policy that the run started from. Above 0 its weights are kept on the
    host."""
    opponents: NextIteration[list[dict[str, Any]]] = field(default_factory=list)
    """Policies of earlier runs that mnpo plays against, [{path: folder in Hugging Face format, weight: share}, ...];
    ref_coef is the share of the policy that the run started from."""


# Keys that say how others are read, or that every objective takes in another form
_OF_ALL = {"name", "pairwise", "tau", "loss_agg_mode"}


def check_objective(config: Config, generates: bool) -> Iterator[str]:
    """The objective's keys together; what is of one objective alone, it checks itself.

    generates: whether responses are sampled; False if stored ones are read.
    """
    from sppo_megatron.objective.base import Units
    from sppo_megatron.objective.registry import objective_class

    o, k = config.objective, config.rollout.num_samples_per_prompt
    yield from _check_shared(config, generates)
    try:
        chosen = objective_class(vars(o))
    except ValueError as error:
        yield str(error)
        return
    yield from chosen.check(config, generates)
    yield from _unread_keys(o, chosen.keys_read() | _OF_ALL)
    if generates and k < 2 and chosen.units is Units.BEST_WORST:
        yield f"a pair is two responses of a prompt: rollout.num_samples_per_prompt={k} must be at least 2"
    if generates and learns_from_humans(o) != (config.data.response_key is not None):
        yield (
            "objective.pairwise=spin and data.response_key belong together: the human responses under that key are "
            "SPIN's winners. Give both or neither"
        )


def learns_from_humans(objective: ObjectiveConfig) -> bool:
    """Whether human responses win against the sampled ones, so that no reward is needed."""
    from sppo_megatron.objective.base import Units
    from sppo_megatron.objective.registry import objective_class

    try:
        return objective_class(vars(objective)).units is Units.HUMAN_VS_SAMPLE
    except ValueError:  # check_objective says it
        return False


def _check_shared(config: Config, generates: bool) -> Iterator[str]:
    o, k = config.objective, config.rollout.num_samples_per_prompt
    if (o.eta is None) == (o.tau is None):
        yield (
            f"objective.eta={written(o.eta)} and objective.tau={written(o.tau)}: give exactly one of them (τ = 1/η); "
            "set the other to null"
        )
    if o.sequence_weight is not None and o.loss_agg_mode != "seq-mean-token-sum":
        yield "objective.sequence_weight and objective.loss_agg_mode say the same thing: give one of them"
    leaves_one_out = o.baseline.startswith("loo_") or (
        o.reward == "win_rate" and o.win_rate_estimator == "leave_one_out"
    )
    if generates and k < 2 and leaves_one_out:
        yield f"leaving one out needs rollout.num_samples_per_prompt of at least 2, not {k}"
    if (o.ref_coef or o.opponents or o.kl_coef) and config.precision.fp8_param:
        yield (
            "objective.ref_coef, kl_coef and opponents swap weights, which FP8 ones lose digits by: "
            "set precision.fp8_param=false"
        )


def _unread_keys(o: ObjectiveConfig, read: set[str]) -> Iterator[str]:
    """Keys that were given a value and that the chosen objective doesn't read."""
    from sppo_megatron.objective.registry import readers_of

    default = ObjectiveConfig()
    for f in fields(o):
        value = getattr(o, f.name)
        if f.name not in read and value != getattr(default, f.name):
            text = f"{value:g}" if isinstance(value, float) else written(value)
            yield f"objective.{f.name}={text} is read by {' and '.join(readers_of(f.name))} alone: take it away"
