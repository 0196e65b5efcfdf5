"""Against the operations that torch counts in a plain transformers model."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, Qwen2Config, Qwen3MoeConfig

from sppo_megatron.policy.step.attention_cost import break_even_tokens

from megatron.core.transformer.transformer_config import TransformerConfig  # isort: skip

SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 32,
    "attn_implementation": "eager",
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "experts_implementation": "eager"}


@pytest.mark.parametrize("experts", [False, True])
def test_against_counted_operations(experts):
    config = Qwen3MoeConfig(**SHAPE, **EXPERTS) if experts else Qwen2Config(**SHAPE)
    linear, square = counted(config)
    kind = {"num_moe_experts": 8, "moe_router_topk": 3, "moe_ffn_hidden_size": 32} if experts else {}
    ours = TransformerConfig(
        num_layers=2,
        hidden_size=64,
        num_attention_heads=8,
        num_query_groups=2,
        kv_channels=16,
        ffn_hidden_size=96,
        gated_linear_unit=True,
        **kind,
    )
    assert break_even_tokens(ours) == pytest.approx(linear / (square / 2), rel=0.05)  # a router is left out


def counted(config) -> tuple[float, float]:
    """Operations of a forward pass as a·n + b·n²: plain attention multiplies what a causal one leaves out, too."""
    model = AutoModel.from_config(config).eval()
    found = []
    for n in (64, 128):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, n, dtype=torch.long), use_cache=False)
        found.append(counter.get_total_flops())
    square = (found[1] - 2 * found[0]) / (128**2 - 2 * 64**2)
    return (found[0] - square * 64**2) / 64, square
