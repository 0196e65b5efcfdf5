"""How processes and a model are laid out, and whether they can be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sppo_megatron.config.keys import AtLeastOne, Free
from sppo_megatron.errors import raise_problems


@dataclass
class ParallelismConfig:
    """Megatron-Core's parallel sizes. The data-parallel size is what remains of the world."""

    tensor_model_parallel_size: Free[AtLeastOne[int]] = 1
    "Ranks that each weight matrix is split over."
    pipeline_model_parallel_size: Free[AtLeastOne[int]] = 1
    "Stages that the layers are split into."
    virtual_pipeline_model_parallel_size: Free[AtLeastOne[int] | None] = None
    "Chunks of layers on each stage, interleaved; null = one."
    context_parallel_size: Free[AtLeastOne[int]] = 1
    "Ranks that each sequence is split over."
    expert_model_parallel_size: Free[AtLeastOne[int]] = 1
    "Ranks that the experts are spread over."
    expert_tensor_parallel_size: Free[AtLeastOne[int] | None] = None
    "Ranks that each expert's matrices are split over; null = tensor_model_parallel_size."
    sequence_parallel: Free[bool] = False
    "Split the sequence over the tensor-parallel ranks between the matrix products."
    overlap_grad_reduce: Free[bool] = False
    "Reduce gradients while the backward pass runs."
    overlap_param_gather: Free[bool] = False
    "Gather weights while the forward pass runs."
    distributed_timeout_minutes: Free[AtLeastOne[int]] = 30
    "How long a rank waits for the others."


def check_layout(
    parallelism: ParallelismConfig,
    *,
    num_layers: int,
    num_attention_heads: int,
    num_query_groups: int,
    ffn_hidden_size: int,
    num_experts: int | None = None,
    expert_ffn_hidden_size: int | None = None,
    biased_experts: bool = False,
) -> None:
    """Raises ConfigError if the model can't be cut as configured. num_experts: None for a dense model."""
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
    if biased_experts and (parallelism.expert_tensor_parallel_size or tp) > 1:
        problems.append(
            "the model's experts have biases, which Megatron-Core does not cut over ranks: set "
            "parallelism.expert_tensor_parallel_size=1"
        )
    raise_problems([*problems, *_check_experts(parallelism, num_experts, expert_ffn_hidden_size)])


def check_processes(parallelism: ParallelismConfig, world_size: int) -> None:
    """Raises ConfigError if world_size processes can't be laid out as configured."""
    raise_problems(find_process_problems(parallelism, world_size))


def find_process_problems(p: ParallelismConfig, world_size: int) -> Iterator[str]:
    model_parallel = p.tensor_model_parallel_size * p.pipeline_model_parallel_size * p.context_parallel_size
    if world_size % model_parallel:
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


def _check_expert_groups(p: ParallelismConfig, world_size: int) -> Iterator[str]:
    """How many processes the experts are spread over: whole replicas, or parts of one."""
    etp, ep = p.expert_tensor_parallel_size or p.tensor_model_parallel_size, p.expert_model_parallel_size
    block, stages, tp = etp * ep, p.pipeline_model_parallel_size, p.tensor_model_parallel_size
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


def _divisors(size: int, at_most: int) -> str:
    return ", ".join(str(i) for i in range(1, at_most + 1) if size % i == 0)
