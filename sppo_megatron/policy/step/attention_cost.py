"""What a sequence costs: its tokens' linear layers, and attention, which grows with the square of its length."""

from __future__ import annotations

from megatron.core.transformer.transformer_config import TransformerConfig


def break_even_tokens(config: TransformerConfig) -> float:
    """The length at which causal attention takes as many operations as all linear layers of the transformer blocks.

    Of P weights that a token meets in a layer and queries of width d, n tokens take 2·n·P operations in linear layers
    and 2·n²·d in attention (half of each n·n product is masked): the length is P/d.
    """
    hidden = config.hidden_size
    queries = config.num_attention_heads * config.kv_channels
    keys = (config.num_query_groups or config.num_attention_heads) * config.kv_channels
    matrices = 3 if config.gated_linear_unit else 2
    if config.num_moe_experts is None:
        width = config.ffn_hidden_size
    else:
        width = config.moe_router_topk * config.moe_ffn_hidden_size + (config.moe_shared_expert_intermediate_size or 0)
    return (2 * hidden * queries + 2 * hidden * keys + matrices * hidden * width) / queries
