"""Megatron's Adam and its learning-rate schedule, from the configuration."""

from __future__ import annotations

import warnings

from megatron.core.optimizer import (
    USING_PYTORCH_OPTIMIZER,
    MegatronOptimizer,
    OptimizerConfig,
    get_megatron_optimizer,
)
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import nn

from sppo_megatron.config import Config
from sppo_megatron.megatron_cpu import adam as torch_adam
from sppo_megatron.policy.model.precision import optimizer_fields

if USING_PYTORCH_OPTIMIZER:
    torch_adam.apply()


def build_optimizer(chunks: list[nn.Module], run: Config, groups: ProcessGroupCollection) -> MegatronOptimizer:
    """Adam with decoupled weight decay on matrices (not norms and biases); gradients clipped by their global norm."""
    o = run.optimizer
    config = OptimizerConfig(
        optimizer="adam",
        lr=o.lr,
        min_lr=o.min_lr,
        weight_decay=o.weight_decay,
        adam_beta1=o.adam_beta1,
        adam_beta2=o.adam_beta2,
        adam_eps=o.adam_eps,
        clip_grad=o.clip_grad,
        use_distributed_optimizer=o.use_distributed_optimizer,
        overlap_param_gather=run.parallelism.overlap_param_gather,
        **optimizer_fields(run.precision),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_megatron_optimizer(config, chunks, use_gloo_process_groups=False, pg_collection=None)


def build_scheduler(optimizer: MegatronOptimizer, run: Config, total_steps: int) -> OptimizerParamScheduler:
    """The learning rate of each optimizer step: linear warm-up from 0, then constant, linear or cosine to min_lr."""
    o = run.optimizer
    decay_steps = o.lr_decay_steps or max(total_steps, o.lr_warmup_steps + 1)
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=o.lr,
        min_lr=o.min_lr,
        lr_warmup_steps=o.lr_warmup_steps,
        lr_decay_steps=decay_steps,
        lr_decay_style=o.lr_decay_style,
        start_wd=o.weight_decay,
        end_wd=o.weight_decay,
        wd_incr_steps=decay_steps,
        wd_incr_style="constant",
    )
