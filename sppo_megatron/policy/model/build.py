"""An architecture becomes Megatron-Core's GPTModel chunks, loaded, wrapped for data parallelism."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.fusions.fused_bias_geglu import quick_gelu
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import layers as tensor_parallel_layers
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig
from torch import Tensor, nn

from sppo_megatron.config import Config, ModelConfig, ParallelismConfig, PrecisionConfig
from sppo_megatron.hf.architecture import Activation, Architecture, LatentAttention, MixtureOfExperts
from sppo_megatron.hf.mapping import expert_index, with_expert_index
from sppo_megatron.parallel.fused_kernels import has_apex_weight_gradient, has_transformer_engine
from sppo_megatron.policy.model.embedding import scale_embeddings
from sppo_megatron.policy.model.fp8 import check_fp8_shapes
from sppo_megatron.policy.model.layer_spec import decoder_spec
from sppo_megatron.policy.model.precision import data_parallel_fields, transformer_fields
from sppo_megatron.policy.model.rotary import set_rotary_frequencies
from sppo_megatron.policy.model.router import named_expert_biases, routers_with_bias
from sppo_megatron.policy.model.shared_prompts import share_rotary_positions


def transformer_config(
    architecture: Architecture, model: ModelConfig, parallelism: ParallelismConfig, precision: PrecisionConfig
) -> TransformerConfig:
    """Megatron's configuration of this model in this layout."""
    a = architecture
    fields: dict[str, Any] = {
        "num_layers": a.num_layers,
        "hidden_size": a.hidden_size,
        "ffn_hidden_size": a.ffn_hidden_size,
        "num_attention_heads": a.num_attention_heads,
        "num_query_groups": a.num_query_groups,
        "kv_channels": a.head_dim,
        "normalization": "RMSNorm",
        "layernorm_epsilon": a.norm_epsilon,
        "gated_linear_unit": True,
        "activation_func": _ACTIVATIONS[a.activation],
        "bias_activation_fusion": a.activation == "silu",  # that of quick_gelu limits before it adds the bias
        "activation_func_clamp_value": a.activation_clamp,
        "glu_linear_offset": a.up_offset,
        "add_bias_linear": a.linear_biases,
        "add_qkv_bias": a.qkv_bias,
        "qk_layernorm": a.qk_norm,
        "layernorm_zero_centered_gamma": a.zero_centered_norms,
        "softmax_scale": a.softmax_scale,
        "softmax_type": "learnable" if a.sinks else "vanilla",
    }
    if a.windows:
        fields |= _window_fields(a)
    if a.latent is not None:
        fields |= _latent_fields(a.latent)
    if a.mixture is not None:
        fields |= _mixture_fields(a.mixture, model, parallelism)
    if precision.fp8 is not None:
        check_fp8_shapes(a, parallelism, precision.fp8_recipe)
    fields = run_fields(model, parallelism, precision) | fields
    return (TransformerConfig if a.latent is None else MLATransformerConfig)(**fields)


_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
}


def _window_fields(a: Architecture) -> dict[str, Any]:
    """Megatron counts the keys before a query's own."""
    (window,) = {window for window in a.windows if window is not None}
    return {
        "window_size": (window - 1, 0),
        "window_attn_skip_freq": [int(of_layer is not None) for of_layer in a.windows],
    }


def _latent_fields(latent: LatentAttention) -> dict[str, Any]:
    """The frequencies are put into the layers (`set_rotary_frequencies`), so the rope is plain to Megatron."""
    return {
        "multi_latent_attention": True,
        "apply_rope_fusion": False,  # Megatron has it for its own kind of rope alone
        "q_lora_rank": latent.q_rank,
        "kv_lora_rank": latent.kv_rank,
        "qk_head_dim": latent.qk_dim,
        "qk_pos_emb_head_dim": latent.rope_dim,
        "v_head_dim": latent.v_dim,
        "rope_type": "rope",
        "qk_layernorm": True,
        "rotary_scaling_factor": latent.rotary_scaling_factor,
        "mscale_all_dim": latent.mscale_all_dim,
    }


def run_fields(model: ModelConfig, p: ParallelismConfig, precision: PrecisionConfig) -> dict[str, Any]:
    """What a run decides about any model. Dropout is off: π_θ must be a function."""
    interleaved = p.virtual_pipeline_model_parallel_size is not None
    fields: dict[str, Any] = {
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "gradient_accumulation_fusion": has_transformer_engine() or has_apex_weight_gradient(),
        # without it Megatron asks the GPU for the lengths of packed sequences, twice a layer
        "apply_rope_fusion": has_transformer_engine(),
        "tensor_model_parallel_size": p.tensor_model_parallel_size,
        "pipeline_model_parallel_size": p.pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": p.virtual_pipeline_model_parallel_size,
        "context_parallel_size": p.context_parallel_size,
        "sequence_parallel": p.sequence_parallel,
        # gloo's batched point-to-point calls are silently wrong under the interleaved schedule
        "overlap_p2p_comm": interleaved,
        "batch_p2p_comm": not interleaved,
        "recompute_granularity": model.recompute_granularity,
    }
    if model.recompute_granularity == "full":
        fields |= {"recompute_method": model.recompute_method, "recompute_num_layers": model.recompute_num_layers}
    return fields | transformer_fields(precision)


def _mixture_fields(moe: MixtureOfExperts, model: ModelConfig, p: ParallelismConfig) -> dict[str, Any]:
    """Routing as Hugging Face defines it, in fp32; no token is dropped, no noise is added."""
    coefficient = moe.aux_loss_coeff if model.moe_aux_loss_coeff is None else model.moe_aux_loss_coeff
    return {
        "num_moe_experts": moe.num_experts,
        "moe_layer_freq": 1 if all(moe.layers) else [int(is_mixture) for is_mixture in moe.layers],
        "moe_ffn_hidden_size": moe.ffn_hidden_size,
        "moe_shared_expert_intermediate_size": moe.shared_ffn_hidden_size,
        "moe_shared_expert_gate": moe.shared_gate,
        "moe_router_topk": moe.num_experts_per_token,
        "moe_router_score_function": moe.score_function,
        # A softmax over the chosen logits is the chosen probabilities made to sum to 1.
        "moe_router_pre_softmax": moe.score_function == "softmax" and not moe.normalizes_topk,
        "moe_router_num_groups": moe.num_groups,
        "moe_router_group_topk": moe.group_topk,
        "moe_router_topk_scaling_factor": None if moe.scaling_factor == 1 else moe.scaling_factor,
        "moe_router_enable_expert_bias": moe.expert_bias,
        "moe_router_bias_update_rate": model.moe_expert_bias_update_rate,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "aux_loss" if coefficient else "none",
        "moe_aux_loss_coeff": coefficient,
        "moe_token_dispatcher_type": "alltoall",
        "moe_grouped_gemm": has_transformer_engine(),
        "expert_model_parallel_size": p.expert_model_parallel_size,
        "expert_tensor_parallel_size": p.expert_tensor_parallel_size or p.tensor_model_parallel_size,
    }


def build_chunks(
    architecture: Architecture,
    config: TransformerConfig,
    padded_vocab_size: int,
    groups: ProcessGroupCollection,
    *,
    shares_prompts: bool = False,
) -> list[nn.Module]:
    """This pipeline stage's model chunks, one per virtual stage, with uninitialized weights."""

    def build(pre_process: bool, post_process: bool, vp_stage: int | None) -> GPTModel:
        chunk = GPTModel(
            config,
            decoder_spec(config, vp_stage, groups.pp.rank(), architecture, shares_prompts=shares_prompts),
            vocab_size=padded_vocab_size,
            max_sequence_length=architecture.max_position_embeddings,
            pre_process=pre_process,
            post_process=post_process,
            share_embeddings_and_output_weights=architecture.tied_embeddings,
            position_embedding_type="rope",
            pg_collection=groups,
            vp_stage=vp_stage,
        )
        set_rotary_frequencies(chunk, architecture, groups)
        if shares_prompts:
            share_rotary_positions(chunk)
        if pre_process and architecture.embedding_scale is not None:
            scale_embeddings(chunk.embedding, architecture.embedding_scale)
        return chunk

    return build_stages(config, groups, build)


def build_stages(
    config: TransformerConfig,
    groups: ProcessGroupCollection,
    build: Callable[[bool, bool, int | None], GPTModel],
) -> list[nn.Module]:
    """This pipeline stage's chunks in its precision, on its GPU but for config.use_cpu_initialization.

    build: (pre_process, post_process, vp_stage).
    """
    virtual = config.virtual_pipeline_model_parallel_size
    rank, size = groups.pp.rank(), groups.pp.size()
    chunks: list[nn.Module] = []
    for stage in range(virtual or 1):
        first, last = rank == 0 and stage == 0, rank == size - 1 and stage == (virtual or 1) - 1
        with _quiet_deprecation(), _output_layer_without_apex():
            chunk = build(first, last, stage if virtual else None)
        if chunk.post_process and not has_apex_weight_gradient():
            chunk.output_layer.gradient_accumulation_fusion = False
        if torch.cuda.is_available() and not config.use_cpu_initialization:
            chunk.cuda(torch.cuda.current_device())
        chunks.append(Float16Module(config, chunk) if config.bf16 or config.fp16 else chunk)
        for router in routers_with_bias(chunk):
            router.keep_fp32()
    return chunks


def wrap_data_parallel(
    chunks: list[nn.Module], config: TransformerConfig, run: Config, groups: ProcessGroupCollection
) -> list[nn.Module]:
    """The chunks with contiguous fp32 gradient buffers, reduced over the data- and context-parallel ranks."""
    for chunk in chunks:
        _set_experts_apart(chunk)
    ddp_config = DistributedDataParallelConfig(
        use_distributed_optimizer=run.optimizer.use_distributed_optimizer,
        overlap_grad_reduce=run.parallelism.overlap_grad_reduce,
        overlap_param_gather=run.parallelism.overlap_param_gather,
        **data_parallel_fields(run.precision),
    )
    wrapped = [
        DistributedDataParallel(config, ddp_config, chunk, disable_bucketing=index > 0, pg_collection=groups)
        for index, chunk in enumerate(chunks)
    ]
    for chunk in wrapped:
        for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers):
            _count_padding(buffer)
    return wrapped


def _count_padding(buffer: Any) -> None:
    """Counts what fills a bucket up among its elements.

    The optimizer's checkpoint is of the buckets without it, one after the other, but finds a parameter by its place in
    the whole buffer: behind a bucket that was filled up, such as that of a tied embedding, it would be another's.
    """
    for bucket in buffer.buckets:
        bucket.numel_unpadded = bucket.grad_data.numel()
    buffer.numel_unpadded = buffer.numel


def _set_experts_apart(chunk: nn.Module) -> None:
    """Gives the experts gradient buffers and an optimizer of their own in every layout.

    Megatron does so if their process groups differ from the dense layers'. A checkpoint holds the state of each
    optimizer by itself: one that was saved with two would load only into two. Their biases' gradients are whole on each
    tensor-parallel rank, though Megatron marks them as parts of a sequence's.
    """
    for name, parameter in chunk.named_parameters():
        if expert_index(name) is not None:
            parameter.allreduce = False  # type: ignore[attr-defined]  # Megatron's mark for the expert groups
            parameter.sequence_parallel = False  # type: ignore[attr-defined]


def unwrap(chunk: nn.Module) -> GPTModel:
    """The GPTModel inside its wrappers."""
    model: Any = chunk
    while hasattr(model, "module"):
        model = model.module
    return model


def named_parameters(chunks: list[nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """This rank's parameters by their global names: layers and experts are numbered over the whole model, from 0.

    The biases of experts' choice are among them: buffers, but weights of the checkpoint. A tied output layer
    on the last pipeline stage is a copy of the embedding that lives on the first; it is named too.
    """
    for chunk in chunks:
        model = unwrap(chunk)
        for name, parameter in named_weights(model):
            parts = name.split(".")
            if parts[:2] == ["decoder", "layers"]:
                layer = model.decoder.layers[int(parts[2])]
                parts[2] = str(layer.layer_number - 1)
            name = ".".join(parts)
            expert = expert_index(name) if "experts" in parts else None
            if expert is not None:
                name = with_expert_index(name, layer.mlp.local_expert_indices[expert])
            yield name, parameter


def named_weights(model: GPTModel) -> Iterator[tuple[str, Tensor]]:
    """Parameters and the biases of experts' choice by their names in this chunk."""
    yield from model.named_parameters()
    yield from named_expert_biases(model)


@contextlib.contextmanager
def _output_layer_without_apex() -> Iterator[None]:
    """Lets Megatron's output layer be built if Transformer Engine fuses weight gradients and apex is missing.

    Its constructor asks for apex's kernel, which only its own backward pass needs. The one that runs is that of
    `lm_head`, which adds to `main_grad` itself.
    """
    available = tensor_parallel_layers._grad_accum_fusion_available
    tensor_parallel_layers._grad_accum_fusion_available = True
    try:
        yield
    finally:
        tensor_parallel_layers._grad_accum_fusion_available = available


@contextlib.contextmanager
def _quiet_deprecation() -> Iterator[None]:
    """GPTModel announces HybridModel as its successor at every construction; once in our changelog is enough."""
    logger = logging.getLogger("megatron.core.models.gpt.gpt_model")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
