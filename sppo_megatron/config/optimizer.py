"""Adam and its schedule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Interval

from sppo_megatron.config.keys import AtLeastOne, Fixed, Free, NotNegative, Positive

if TYPE_CHECKING:
    from sppo_megatron.config.schema import Config


@dataclass
class OptimizerConfig:
    """Adam with decoupled weight decay (none on norms and biases)."""

    lr: Free[Positive[float]] = 1e-6
    "Learning rate after the warm-up."
    min_lr: Free[NotNegative[float]] = 0.0
    "Learning rate at the end of the decay."
    lr_warmup_steps: Free[NotNegative[int]] = 0
    "Optimizer steps over which the learning rate rises linearly from 0."
    lr_decay_style: Free[Literal["constant", "linear", "cosine"]] = "constant"
    "How the learning rate falls to min_lr."
    lr_decay_steps: Free[AtLeastOne[int] | None] = None
    "Optimizer steps until min_lr, the warm-up among them; null = the whole run."
    weight_decay: Free[NotNegative[float]] = 0.0
    "Decoupled weight decay."
    adam_beta1: Free[Annotated[float, Interval(ge=0, lt=1)]] = 0.9
    "Decay of the mean of gradients."
    adam_beta2: Free[Annotated[float, Interval(ge=0, lt=1)]] = 0.95
    "Decay of the mean of squared gradients."
    adam_eps: Free[Positive[float]] = 1e-8
    "Added to the root of the mean of squared gradients."
    clip_grad: Free[NotNegative[float]] = 1.0
    "Bound on the global norm of the gradient; 0 = no bound."
    use_distributed_optimizer: Fixed[bool] = True
    "Spread the optimizer's state over the data-parallel ranks."


def check_optimizer(config: Config) -> Iterator[str]:
    o = config.optimizer
    if o.min_lr > o.lr:
        yield f"optimizer.min_lr={o.min_lr} must not be above optimizer.lr={o.lr}, which it decays from"
    if o.lr_decay_steps is not None and o.lr_decay_steps <= o.lr_warmup_steps:
        yield (
            f"optimizer.lr_decay_steps={o.lr_decay_steps} counts the warm-up too: make it larger than "
            f"optimizer.lr_warmup_steps={o.lr_warmup_steps}, or null for the whole run"
        )


def check_overlap(config: Config) -> Iterator[str]:
    p = config.parallelism
    if p.overlap_param_gather and not (p.overlap_grad_reduce and config.optimizer.use_distributed_optimizer):
        yield (
            "parallelism.overlap_param_gather=true needs parallelism.overlap_grad_reduce=true and "
            "optimizer.use_distributed_optimizer=true"
        )
