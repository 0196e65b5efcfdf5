"""What tells the supported model families apart. Everything else follows from a model's config.

All are decoders with rotary positions, RMS norms, grouped-query attention and gated SiLU MLPs without biases.
"""

from __future__ import annotations

from dataclasses import dataclass

from sppo_megatron.errors import ConfigError


@dataclass(frozen=True)
class ExpertNames:
    """Where a family's Hugging Face tensors of a mixture of experts are, inside `model.layers.N.`.

    An expert's tensors are `{block}.experts.{index}.{gate|up|down}.weight`.
    """

    block: str
    gate: str
    up: str
    down: str
    router: str = "gate"
    shared: str | None = None  # the shared expert
    shared_gate: str | None = None  # its [1, hidden] gate


@dataclass(frozen=True)
class Family:
    """qkv_bias: the projections of queries, keys and values have biases. qk_norm: queries and keys are normed per head.

    normalizes_topk: whether the probabilities of the chosen experts are made to sum to 1; None: the config says.
    """

    qkv_bias: bool = False
    qk_norm: bool = False
    experts: ExpertNames | None = None
    normalizes_topk: bool | None = None


_QWEN2_EXPERTS = ExpertNames(
    "mlp", "gate_proj", "up_proj", "down_proj", shared="shared_expert", shared_gate="shared_expert_gate"
)
_QWEN3_EXPERTS = ExpertNames("mlp", "gate_proj", "up_proj", "down_proj")
_MIXTRAL_EXPERTS = ExpertNames("block_sparse_moe", "w1", "w3", "w2")

# By the config's model_type. Qwen2.5 is qwen2, Llama 2 and 3.x are llama.
FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm=True),
    "mixtral": Family(experts=_MIXTRAL_EXPERTS, normalizes_topk=True),
    "qwen2_moe": Family(qkv_bias=True, experts=_QWEN2_EXPERTS),
    "qwen3_moe": Family(qk_norm=True, experts=_QWEN3_EXPERTS),
}


def family_of(model_type: str) -> Family:
    """Raises ConfigError that says what is supported."""
    if model_type not in FAMILIES:
        raise ConfigError(
            f"model family {model_type!r} is not supported; supported are {', '.join(FAMILIES)}. "
            "Training and the converters alone take others, too, through megatron-bridge (docs/models.md)"
        )
    return FAMILIES[model_type]
