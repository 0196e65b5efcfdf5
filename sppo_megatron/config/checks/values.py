"""Which values each key may have, by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sppo_megatron.config import Config

PAIRWISE_KINDS = ("sppo", "sppo_single", "sppo_hard", "dpo", "spin", "ipo", "rebel", "inpo")  # of pairwise_loss
# Rewards of one response, and preferences between two; a mixture is of the former.
SCALAR_KINDS = ("exact_match", "numeric", "character_share", "math_verify", "function", "reward_model")
PREFERENCE_KINDS = ("judge", "pairwise_model", "pairwise_function")
REWARD_KINDS = (*SCALAR_KINDS, *PREFERENCE_KINDS, "mixture", "none")

_CHOICES: dict[str, tuple[Any, ...]] = {
    "model.init": ("hf", "random"),
    "model.recompute_granularity": (None, "selective", "full"),
    "model.recompute_method": ("uniform", "block"),
    "precision.dtype": ("fp32", "bf16", "fp16"),
    "precision.fp8": (None, "hybrid", "e4m3"),
    "precision.fp8_recipe": ("delayed", "tensorwise", "blockwise", "mxfp8"),
    "precision.fp8_amax_compute_algo": ("most_recent", "max"),
    "objective.reward": ("reward", "win_rate"),
    "objective.win_rate_estimator": ("include_self", "leave_one_out"),
    "objective.baseline": ("constant", "mean", "loo_mean", "log_partition", "loo_log_partition"),
    "objective.loss_agg_mode": ("seq-mean-token-sum", "seq-mean-token-mean", "token-mean"),
    "objective.sequence_weight": (None, "none", "length", "max_length"),
    "objective.loss_scale": ("sppo", "kimi"),
    "objective.pairwise": (None, *PAIRWISE_KINDS),
    "objective.importance_weight": (None, "sequence", "token"),
    "reward.kind": REWARD_KINDS,
    "reward.model.dtype": ("fp32", "bf16", "fp16"),
    "rollout.ahead": (0, 1),
    "rollout.mismatch.action": ("warn", "importance_weight", "drop", "stop"),
    "rollout.server.weight_sync": ("broadcast", "disk"),
    "train.fused_loss": ("auto", "off"),
    "train.log_prob_kernels": ("auto", "torch", "triton"),
    "optimizer.lr_decay_style": ("constant", "linear", "cosine"),
}
_AT_LEAST_ONE = (
    "model.make_vocab_size_divisible_by",
    "model.recompute_num_layers",
    "parallelism.tensor_model_parallel_size",
    "parallelism.pipeline_model_parallel_size",
    "parallelism.virtual_pipeline_model_parallel_size",
    "parallelism.context_parallel_size",
    "parallelism.expert_model_parallel_size",
    "parallelism.expert_tensor_parallel_size",
    "parallelism.distributed_timeout_minutes",
    "precision.fp8_amax_history_len",
    "reward.num_workers",
    "reward.judge.concurrency",
    "reward.judge.max_tokens",
    "reward.model.batch_size",
    "reward.model.max_length",
    "rollout.num_samples_per_prompt",
    "rollout.max_response_length",
    "rollout.batch_size",
    "rollout.vllm.tensor_parallel_size",
    "rollout.vllm.max_model_len",
    "rollout.vllm.max_num_seqs",
    "rollout.vllm.kv_cache_memory_mib",
    "rollout.server.concurrency",
    "train.iterations",
    "train.prompts_per_iteration",
    "train.epochs_per_iteration",
    "train.minibatch_size",
    "train.micro_batch_size",
    "train.max_tokens_per_micro_batch",
    "train.log_prob_chunk_size",
    "optimizer.lr_decay_steps",
    "data.max_prompt_length",
    "eval.num_samples_per_prompt",
    "checkpoint.save_interval",
    "checkpoint.keep_last",
)
_POSITIVE = (
    "precision.initial_loss_scale",
    "precision.fp8_max_log_ratio_diff",
    "objective.importance_cap",
    "objective.target_clip",
    "objective.beta",
    "reward.timeout_s",
    "reward.judge.timeout_s",
    "rollout.vllm.gpu_memory_utilization",
    "rollout.server.timeout_s",
    "rollout.server.bucket_mib",
    "rollout.mismatch.mean_bound",
    "rollout.mismatch.share_bound",
    "rollout.mismatch.token_bound",
    "rollout.mismatch.sequence_bound",
    "train.logits_budget_mib",
    "optimizer.lr",
    "optimizer.adam_eps",
)
_NOT_NEGATIVE = (
    "model.moe_aux_loss_coeff",
    "precision.fp8_margin",
    "precision.fp8_probe_samples",
    "precision.num_layers_at_start_in_bf16",
    "precision.num_layers_at_end_in_bf16",
    "eval.interval",
    "eval.temperature",
    "rollout.seed",
    "reward.judge.retries",
    "reward.judge.backoff_s",
    "rollout.server.retries",
    "rollout.server.backoff_s",
    "train.seed",
    "optimizer.min_lr",
    "optimizer.lr_warmup_steps",
    "optimizer.weight_decay",
    "optimizer.clip_grad",
)


def check_values(config: Config) -> Iterator[str]:
    for key, allowed in _CHOICES.items():
        if _value(config, key) not in allowed:
            names = ", ".join("null" if choice is None else str(choice) for choice in allowed)
            yield f"{key}={_value(config, key)!r} is not known: choose one of {names}"
    for key in _AT_LEAST_ONE:
        if (value := _value(config, key)) is not None and value < 1:
            yield f"{key}={value} must be at least 1"
    for key in _POSITIVE:
        if (value := _value(config, key)) is not None and not value > 0:
            yield f"{key}={value} must be above 0"
    for key in _NOT_NEGATIVE:
        if (value := _value(config, key)) is not None and value < 0:
            yield f"{key}={_value(config, key)} must not be negative"


def _value(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value
