"""Every check of a configuration that needs no model and no process group. One error names all that is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sppo_megatron.config import Config, ParallelismConfig
from sppo_megatron.errors import ConfigError

# Kinds of objective.pairwise_loss that a group of samples has all the inputs for.
PAIRWISE_KINDS = ("sppo", "sppo_single", "sppo_hard", "dpo", "ipo", "rebel")

_CHOICES: dict[str, tuple[Any, ...]] = {
    "model.init": ("hf", "random"),
    "model.recompute_granularity": (None, "selective", "full"),
    "model.recompute_method": ("uniform", "block"),
    "precision.dtype": ("fp32", "bf16", "fp16"),
    "precision.fp8": (None, "hybrid", "e4m3"),
    "precision.fp8_recipe": ("delayed", "tensorwise", "blockwise", "mxfp8"),
    "objective.reward": ("reward", "win_rate"),
    "objective.win_rate_estimator": ("include_self", "leave_one_out"),
    "objective.baseline": ("constant", "mean", "loo_mean", "log_partition", "loo_log_partition"),
    "objective.loss_agg_mode": ("seq-mean-token-sum", "seq-mean-token-mean", "token-mean"),
    "objective.sequence_weight": (None, "none", "length", "max_length"),
    "objective.loss_scale": ("sppo", "kimi"),
    "objective.pairwise": (None, *PAIRWISE_KINDS),
    "objective.importance_weight": (None, "sequence", "token"),
    "reward.kind": ("exact_match", "numeric", "character_share", "math_verify", "function"),
    "rollout.engine": ("megatron", "replay"),
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
    "reward.num_workers",
    "rollout.num_samples_per_prompt",
    "rollout.max_response_length",
    "rollout.batch_size",
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
    "objective.importance_cap",
    "objective.target_clip",
    "objective.beta",
    "reward.timeout_s",
    "train.logits_budget_mib",
    "optimizer.lr",
    "optimizer.adam_eps",
)
_NOT_NEGATIVE = (
    "model.moe_aux_loss_coeff",
    "eval.interval",
    "eval.temperature",
    "rollout.seed",
    "train.seed",
    "optimizer.min_lr",
    "optimizer.lr_warmup_steps",
    "optimizer.weight_decay",
    "optimizer.clip_grad",
)


def check_config(config: Config, world_size: int) -> None:
    """Raises ConfigError listing every problem of the configuration for a job of world_size processes."""
    _raise(
        [
            *_check_values(config),
            *_check_objective(config),
            *_check_rollout(config),
            *_check_optimizer(config),
            *_check_processes(config.parallelism, world_size),
            *_check_overlap(config),
        ]
    )


def check_layout(
    parallelism: ParallelismConfig,
    *,
    num_layers: int,
    num_attention_heads: int,
    num_query_groups: int,
    ffn_hidden_size: int,
    num_experts: int | None = None,
    expert_ffn_hidden_size: int | None = None,
) -> None:
    """Raises ConfigError where the model can't be cut as configured. num_experts: None for a dense model."""
    tp = parallelism.tensor_model_parallel_size
    stages = parallelism.pipeline_model_parallel_size * (parallelism.virtual_pipeline_model_parallel_size or 1)
    problems = []
    for what, size in (("attention heads", num_attention_heads), ("MLP columns", ffn_hidden_size)):
        if size % tp:
            problems.append(
                f"parallelism.tensor_model_parallel_size={tp} does not divide the model's {size} {what}: "
                f"choose one of {_divisors(size, num_attention_heads)}"
            )
    if num_query_groups % tp and tp % num_query_groups:
        problems.append(
            f"parallelism.tensor_model_parallel_size={tp} neither divides nor is a multiple of the model's "
            f"{num_query_groups} key-value heads"
        )
    if num_layers % stages:
        problems.append(
            f"the model's {num_layers} layers can't be split evenly over {stages} pipeline stages "
            "(pipeline_model_parallel_size × virtual_pipeline_model_parallel_size): "
            f"their product must be one of {_divisors(num_layers, num_layers)}"
        )
    _raise([*problems, *_check_experts(parallelism, num_experts, expert_ffn_hidden_size)])


def _check_experts(p: ParallelismConfig, num_experts: int | None, ffn_hidden_size: int | None) -> Iterator[str]:
    ep, etp = p.expert_model_parallel_size, p.expert_tensor_parallel_size or p.tensor_model_parallel_size
    if num_experts is None or ffn_hidden_size is None:
        if ep != 1 or p.expert_tensor_parallel_size is not None:
            yield (
                "parallelism.expert_model_parallel_size and parallelism.expert_tensor_parallel_size are for "
                "mixture-of-experts models, and this one is dense: set them to 1 and null"
            )
        return
    if num_experts % ep:
        yield (
            f"parallelism.expert_model_parallel_size={ep} does not divide the model's {num_experts} experts: "
            f"choose one of {_divisors(num_experts, num_experts)}"
        )
    if ffn_hidden_size % etp:
        yield (
            f"parallelism.expert_tensor_parallel_size={etp} does not divide the experts' {ffn_hidden_size} MLP columns"
        )
    if p.tensor_model_parallel_size > 1 and not p.sequence_parallel:
        yield (
            f"a mixture of experts with parallelism.tensor_model_parallel_size={p.tensor_model_parallel_size} needs "
            "parallelism.sequence_parallel=true: without it every tensor-parallel rank would route every token"
        )


def _raise(problems: Iterable[str]) -> None:
    found = list(problems)
    if found:
        raise ConfigError("\n".join(found))


def _divisors(size: int, at_most: int) -> str:
    return ", ".join(str(i) for i in range(1, at_most + 1) if size % i == 0)


def _value(config: Config, key: str) -> Any:
    group, name = key.split(".")
    return getattr(getattr(config, group), name)


def _check_values(config: Config) -> Iterator[str]:
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


def _check_objective(config: Config) -> Iterator[str]:
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


def _check_rollout(config: Config) -> Iterator[str]:
    r, data, reward = config.rollout, config.data, config.reward
    if not r.temperature > 0:
        yield f"rollout.temperature={r.temperature} must be above 0: π_t is the distribution that is sampled from"
    if not 0 < r.top_p <= 1:
        yield f"rollout.top_p={r.top_p} must be in (0, 1]"
    if r.top_k == 0 or r.top_k < -1:
        yield f"rollout.top_k={r.top_k} must be -1 (off) or at least 1"
    if r.engine == "replay":
        if r.path is None:
            yield "rollout.engine=replay needs rollout.path: a rollout file, or a folder with one per iteration"
        elif not Path(r.path).exists():
            yield f"rollout.path={r.path} does not exist"
    elif data.train_path is None:
        yield f"rollout.engine={r.engine} needs data.train_path: a JSONL file of prompts"
    elif config.train.prompts_per_iteration is None:
        yield f"rollout.engine={r.engine} needs train.prompts_per_iteration"
    for key in ("train_path", "eval_path"):
        path = getattr(data, key)
        if path is not None and not Path(path).exists():
            yield f"data.{key}={path} does not exist"
    if (reward.kind == "function") != (reward.function is not None):
        yield "reward.kind=function and reward.function=module:name belong together: give both or neither"
    if config.checkpoint.load not in (None, "latest") and not Path(config.checkpoint.load).is_dir():
        yield f"checkpoint.load={config.checkpoint.load} is neither null, latest nor a folder"


def _check_optimizer(config: Config) -> Iterator[str]:
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


def check_processes(parallelism: ParallelismConfig, world_size: int) -> None:
    """Raises ConfigError where world_size processes can't be laid out as configured."""
    _raise(_check_processes(parallelism, world_size))


def _check_processes(p: ParallelismConfig, world_size: int) -> Iterator[str]:
    model_parallel = p.tensor_model_parallel_size * p.pipeline_model_parallel_size * p.context_parallel_size
    if model_parallel > 0 and world_size % model_parallel:
        yield (
            f"{world_size} processes can't be split into model replicas of {model_parallel} = tensor "
            f"{p.tensor_model_parallel_size} × pipeline {p.pipeline_model_parallel_size} × context "
            f"{p.context_parallel_size}: start a multiple of {model_parallel} (torchrun --nproc-per-node), "
            "or make the parallel sizes smaller"
        )
    if p.sequence_parallel and p.tensor_model_parallel_size == 1:
        yield (
            "parallelism.sequence_parallel=true needs parallelism.tensor_model_parallel_size above 1: "
            "it splits the sequence over the tensor-parallel ranks"
        )
    virtual = p.virtual_pipeline_model_parallel_size
    if virtual is not None and p.pipeline_model_parallel_size == 1:
        yield (
            f"parallelism.virtual_pipeline_model_parallel_size={virtual} needs "
            "parallelism.pipeline_model_parallel_size above 1: set it to null"
        )
    if virtual == 1:
        yield "parallelism.virtual_pipeline_model_parallel_size=1 is no interleaving: set it to null"
    yield from _check_expert_groups(p, world_size)


def _check_overlap(config: Config) -> Iterator[str]:
    p = config.parallelism
    if p.overlap_param_gather and not (p.overlap_grad_reduce and config.optimizer.use_distributed_optimizer):
        yield (
            "parallelism.overlap_param_gather=true needs parallelism.overlap_grad_reduce=true and "
            "optimizer.use_distributed_optimizer=true"
        )


def _check_expert_groups(p: ParallelismConfig, world_size: int) -> Iterator[str]:
    """How many processes the experts are spread over: whole replicas, or parts of one."""
    etp, ep = p.expert_tensor_parallel_size or p.tensor_model_parallel_size, p.expert_model_parallel_size
    block, stages, tp = etp * ep, p.pipeline_model_parallel_size, p.tensor_model_parallel_size
    if min(block, stages, tp) < 1:
        return
    if world_size % (block * stages):
        yield (
            f"{world_size} processes can't be split into expert replicas of {block * stages} = expert tensor {etp} × "
            f"expert {ep} × pipeline {stages}: change parallelism.expert_model_parallel_size or start a multiple"
        )
    if block % tp and tp % block:
        yield (
            f"parallelism.expert_tensor_parallel_size × expert_model_parallel_size = {block} must divide "
            f"parallelism.tensor_model_parallel_size={tp} or be a multiple of it"
        )
