"""FP8 by Transformer Engine: whether it can run here, what it asks of shapes, and forward passes without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from megatron.core.transformer.transformer_config import TransformerConfig

from sppo_megatron.config import ParallelismConfig, PrecisionConfig
from sppo_megatron.config.precision import find_fp8_problem
from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.architecture import Architecture
from sppo_megatron.parallel.fused_kernels import cuda_version, device_capability, is_installed

# Tokens of one rank's matrix product are a multiple of this: the blocks that one scale is shared by.
_TOKEN_MULTIPLES = {"delayed": 16, "tensorwise": 16, "blockwise": 128, "mxfp8": 32}


def check_fp8(precision: PrecisionConfig) -> None:
    """Raises ConfigError if FP8 is asked for and can't run: Megatron-Core itself would train without it, silently."""
    problem = find_fp8_problem(
        precision,
        transformer_engine=is_installed("transformer_engine"),
        capability=device_capability(),
        cuda=cuda_version(),
    )
    if problem is not None:
        raise ConfigError(problem)


def token_multiple(precision: PrecisionConfig) -> int:
    """What the token count of a micro-batch on one rank must be a multiple of."""
    return 1 if precision.fp8 is None else _TOKEN_MULTIPLES[precision.fp8_recipe]


def check_fp8_shapes(architecture: Architecture, parallelism: ParallelismConfig, recipe: str) -> None:
    """Raises ConfigError that names the weights whose sides on one rank FP8 products can't take."""
    a, moe, tp = architecture, architecture.mixture, parallelism.tensor_model_parallel_size
    heads, groups = a.num_attention_heads // tp, max(1, a.num_query_groups // tp)
    sides = {
        "the hidden size": a.hidden_size,
        "the columns of linear_qkv": (heads + 2 * groups) * a.head_dim,
        "the rows of linear_proj": heads * a.head_dim,
    }
    if moe is None or not all(moe.layers):
        sides["the MLP's columns"] = a.ffn_hidden_size // tp
    if moe is not None:
        sides["an expert's columns"] = moe.ffn_hidden_size // (parallelism.expert_tensor_parallel_size or tp)
        sides["the shared expert's columns"] = (moe.shared_ffn_hidden_size or 0) // tp
    multiple = 32 if recipe == "mxfp8" else 16
    wrong = [f"{name} ({size})" for name, size in sides.items() if size % multiple]
    if wrong:
        raise ConfigError(
            f"precision.fp8_recipe={recipe} needs multiples of {multiple} on each tensor-parallel rank, which "
            f"{', '.join(wrong)} are not: make parallelism.tensor_model_parallel_size smaller, or set precision=bf16"
        )


@contextmanager
def without_fp8(config: TransformerConfig) -> Iterator[None]:
    """Forward passes of the block compute in `config.params_dtype`.

    Megatron-Core enters Transformer Engine's FP8 context in each forward pass if config.fp8 is set. Weights that are
    stored in FP8 (fp8_param) stay what they are and are multiplied in the higher precision.
    """
    fp8, config.fp8 = config.fp8, None
    try:
        yield
    finally:
        config.fp8 = fp8
