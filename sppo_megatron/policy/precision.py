"""The configured number formats as Megatron-Core's fields, checked against what this machine can do."""

from __future__ import annotations

from typing import Any

import torch

from sppo_megatron.config import PrecisionConfig
from sppo_megatron.policy.layer_spec import has_transformer_engine

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def params_dtype(precision: PrecisionConfig) -> torch.dtype:
    """The dtype of parameters and activations."""
    return DTYPES[precision.dtype]


def transformer_fields(precision: PrecisionConfig) -> dict[str, Any]:
    """Fields of Megatron's TransformerConfig.

    Raises ValueError where FP8 is asked for and Transformer Engine is absent: Megatron-Core itself would train in
    the high-precision dtype and say nothing.
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
        if not has_transformer_engine():
            raise ValueError(
                f"precision.fp8={precision.fp8} needs a CUDA device and Transformer Engine: "
                "pip install 'sppo-megatron[gpu]', or set precision.fp8=null"
            )
        fields |= {"fp8": precision.fp8, "fp8_recipe": precision.fp8_recipe}
    return fields


def optimizer_fields(precision: PrecisionConfig) -> dict[str, Any]:
    """Fields of Megatron's OptimizerConfig: fp16 trains with a dynamic loss scale."""
    dtype = params_dtype(precision)
    return {
        "params_dtype": dtype,
        "bf16": dtype is torch.bfloat16,
        "fp16": dtype is torch.float16,
        "initial_loss_scale": precision.initial_loss_scale,
    }
