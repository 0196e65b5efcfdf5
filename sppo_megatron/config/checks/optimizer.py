"""The optimizer's keys together."""

from __future__ import annotations

from collections.abc import Iterator

from sppo_megatron.config import Config


def check_optimizer(config: Config) -> Iterator[str]:
    o = config.optimizer
    for key in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(o, key) < 1:
            yield f"optimizer.{key}={getattr(o, key)} must be in [0, 1)"
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
