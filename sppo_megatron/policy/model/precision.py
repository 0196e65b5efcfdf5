"""The configured number formats as the fields of Megatron-Core's configurations."""

from __future__ import annotations

from typing import Any

import torch

from sppo_megatron.config import PrecisionConfig
from sppo_megatron.config.precision import Dtype
from sppo_megatron.policy.model.fp8 import check_fp8

DTYPES: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def params_dtype(precision: PrecisionConfig) -> torch.dtype:
    """The dtype of parameters and activations."""
    return DTYPES[precision.dtype]


def transformer_fields(precision: PrecisionConfig) -> dict[str, Any]:
    """Fields of Megatron's TransformerConfig. Raises ValueError as `check_fp8` does.

    Embedding and LM head are no layers of the block, whose products alone are computed in FP8.
    """
    dtype = params_dtype(precision)
    fields: dict[str, Any] = {
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": dtype is torch.bfloat16,
        "fp16": dtype is torch.float16,
        "attention_softmax_in_fp32": dtype is not torch.float32,
    }
    if precision.fp8 is not None:
        check_fp8(precision)
        fields |= {name: getattr(precision, name) for name in _FP8_FIELDS}
    return fields


_FP8_FIELDS = (
    "fp8",
    "fp8_recipe",
    "fp8_param",
    "fp8_margin",
    "fp8_amax_history_len",
    "fp8_amax_compute_algo",
    "first_last_layers_bf16",
    "num_layers_at_start_in_bf16",
    "num_layers_at_end_in_bf16",
)


def optimizer_fields(precision: PrecisionConfig) -> dict[str, Any]:
    """Fields of Megatron's OptimizerConfig: fp16 trains with a dynamic loss scale."""
    dtype = params_dtype(precision)
    fields: dict[str, Any] = {
        "params_dtype": dtype,
        "bf16": dtype is torch.bfloat16,
        "fp16": dtype is torch.float16,
        "initial_loss_scale": precision.initial_loss_scale,
    }
    if precision.fp8_param:  # how fp32 weights become those of the model again
        fields["fp8_recipe"] = precision.fp8_recipe
    return fields


def data_parallel_fields(precision: PrecisionConfig) -> dict[str, Any]:
    """Fields of Megatron's DistributedDataParallelConfig: gradients add up in fp32 in every format."""
    return {"grad_reduce_in_fp32": True, "fp8_param_gather": precision.fp8_param}
