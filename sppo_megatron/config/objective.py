"""The objective, and whether its keys go together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Interval

from sppo_megatron.config.keys import Finite, NextIteration, Positive, written

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
    "A loss over pairs of responses instead (kinds of `objective.pairwise_loss`); null = the regression of single ones."
    beta: NextIteration[Positive[float] | None] = None
    "Strength of the pull towards the reference, for pairwise=dpo, spin and ipo."
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

    def sequences_of_group(self, num_responses: int) -> int:
        """How many sequences a group of so many responses gives to an epoch, at most: pairs are two."""
        if self.pairwise is None:
            return num_responses
        return 2 * num_responses if self.pairwise == "spin" else 2


_NEED_BETA = ("dpo", "spin", "ipo")


def check_objective(config: Config, generates: bool) -> Iterator[str]:
    """generates: whether responses are sampled; False if stored ones are read."""
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
    if o.pairwise is not None:
        yield from _check_pairwise(config, generates)
    if (o.pairwise == "spin") != (config.data.response_key is not None) and generates:
        yield (
            "objective.pairwise=spin and data.response_key belong together: the human responses under that key are "
            "SPIN's winners. Give both or neither"
        )
    if o.ref_coef and o.pairwise != "inpo":
        yield f"objective.ref_coef={o.ref_coef:g} is of objective.pairwise=inpo: set it to 0"
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
