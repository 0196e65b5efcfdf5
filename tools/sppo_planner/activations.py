"""What one transformer layer saves for its backward pass, in bytes on one rank.

The sum follows Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models" (2022), section 4,
taken to this architecture: RMS norms, grouped queries, a gated MLP, attention that keeps no score matrix, no dropout.
"""

from __future__ import annotations

from dataclasses import dataclass

from sppo_megatron.hf.architecture import Architecture, LatentAttention, MixtureOfExperts
from sppo_planner.arithmetic import Term, term
from sppo_planner.parallel_sizes import ParallelSizes


@dataclass(frozen=True)
class SavedBytes:
    """Bytes an element of what is saved. activation: in general. linear_input: of a linear layer's input.

    norm_input, norm_output: of a norm. Transformer Engine saves the input as it came, torch's RMSNorm in fp32 and the
    normalized input besides. In FP8 Transformer Engine saves the inputs of linear layers in one byte.
    """

    activation: int
    norm_input: int
    norm_output: int
    linear_input: int

    @classmethod
    def of(cls, itemsize: int, *, transformer_engine: bool, fp8: bool) -> SavedBytes:
        of_norm = (itemsize, 0) if transformer_engine else (4, 4)
        return cls(itemsize, *of_norm, 1 if fp8 else itemsize)


@dataclass(frozen=True)
class Tokens:
    """Of one micro-batch on one context-parallel rank. positions: rotary ones that are tabulated, tokens of a row."""

    count: int
    positions: int


def attention_terms(a: Architecture, sizes: ParallelSizes, tokens: Tokens, saved: SavedBytes) -> list[Term]:
    """Norm, projections and attention of one layer. `softmax statistics` is what selective recomputation drops."""
    post_norm = _norm_terms("norm behind attention", a.hidden_size, sizes, tokens, saved)[:-1] if a.post_norms else []
    if a.latent is not None:
        return _latent_terms(a, a.latent, sizes, tokens, saved)
    queries, keys = a.num_attention_heads * a.head_dim, max(a.num_query_groups, sizes.tp) * a.head_dim
    whole: dict[str, float] = {"tokens": tokens.count}
    terms = [
        *_norm_terms("input norm", a.hidden_size, sizes, tokens, saved),
        term("queries, keys, values", **whole, elements=queries + 2 * keys, bytes=saved.activation).over(tp=sizes.tp),
        term("rotated queries and keys", **whole, elements=queries + keys, bytes=saved.activation).over(tp=sizes.tp),
        term("cosines and sines", positions=tokens.positions, elements=4 * a.head_dim, bytes=saved.activation),
        term("attention output", **whole, elements=queries, bytes=saved.linear_input).over(tp=sizes.tp),
        term(SOFTMAX_STATISTICS, **whole, heads=a.num_attention_heads, bytes=4).over(tp=sizes.tp),
    ]
    if a.qk_norm:
        terms += _qk_norm_terms(queries, keys, a.num_query_groups > sizes.tp, sizes, tokens, saved)
    return terms + post_norm


def _latent_terms(
    a: Architecture, latent: LatentAttention, sizes: ParallelSizes, tokens: Tokens, saved: SavedBytes
) -> list[Term]:
    """Queries, keys and values are made anew from the latent vectors, which are normed."""
    whole: dict[str, float] = {"tokens": tokens.count, "heads": a.num_attention_heads}
    query = latent.qk_dim + latent.rope_dim
    terms = [
        *_norm_terms("input norm", a.hidden_size, sizes, tokens, saved),
        *_norm_terms("norm of keys and values", latent.kv_rank, sizes, tokens, saved),
        term("queries and keys", **whole, elements=2 * query, bytes=saved.activation).over(tp=sizes.tp),
        term("values", **whole, elements=latent.v_dim, bytes=saved.activation).over(tp=sizes.tp),
        term("cosines and sines", positions=tokens.positions, elements=4 * latent.rope_dim, bytes=saved.activation),
        term("attention output", **whole, elements=latent.v_dim, bytes=saved.linear_input).over(tp=sizes.tp),
        term(SOFTMAX_STATISTICS, **whole, bytes=4).over(tp=sizes.tp),
    ]
    if latent.q_rank is not None:
        terms += _norm_terms("norm of queries", latent.q_rank, sizes, tokens, saved)
    return terms


SOFTMAX_STATISTICS = "softmax statistics"


def dense_mlp_terms(a: Architecture, sizes: ParallelSizes, tokens: Tokens, saved: SavedBytes) -> list[Term]:
    """Norm and gated MLP of one layer."""
    post_norm = _norm_terms("norm behind the MLP", a.hidden_size, sizes, tokens, saved)[:-1] if a.post_norms else []
    return [
        *_norm_terms("MLP norm", a.hidden_size, sizes, tokens, saved),
        *_gated_mlp_terms("MLP", {"tokens": tokens.count}, a.ffn_hidden_size, sizes.tp, saved),
        *post_norm,
        *([] if a.activation == "silu" else [_unfused_activation(a, sizes, tokens, saved)]),
    ]


def _unfused_activation(a: Architecture, sizes: ParallelSizes, tokens: Tokens, saved: SavedBytes) -> Term:
    """SiLU and its product are one function, other activations are two."""
    name = f"MLP, {a.activation} of the gate"
    return term(name, tokens=tokens.count, elements=a.ffn_hidden_size, bytes=saved.activation).over(tp=sizes.tp)


def mixture_terms(
    a: Architecture, sizes: ParallelSizes, tokens: Tokens, saved: SavedBytes, imbalance: float
) -> list[Term]:
    """Norm, router, dispatched tokens and experts of one layer, with the all-to-all dispatcher.

    imbalance: tokens of the busiest expert-parallel rank over the mean.
    """
    moe = a.mixture
    assert isinstance(moe, MixtureOfExperts)
    local = {"tokens": tokens.count // sizes.sequence_shards}
    # An expert-parallel rank gets as many (token, choice) pairs as it gives; expert tensor parallelism gathers them.
    scored = moe.num_experts_per_token if moe.normalizes_topk else moe.num_experts
    routed = {**local, "choices": moe.num_experts_per_token, "etp": sizes.etp, "imbalance": imbalance}
    terms = [
        *_norm_terms("MLP norm", a.hidden_size, sizes, tokens, saved),
        term("routing probabilities", **local, experts=scored, bytes=4),
        term("sorted choices, int64", **local, experts=moe.num_experts, bytes=8),
        term("chosen experts and order, int64", **local, choices=moe.num_experts_per_token, bytes=16),
        term("dispatched tokens", **routed, hidden=a.hidden_size, bytes=saved.linear_input),
        *_gated_mlp_terms("experts", routed, moe.ffn_hidden_size, sizes.etp, saved),
        term("weights of the choices", **routed, bytes=4),
    ]
    if a.activation_clamp is not None:  # both halves limited, the gate's sigmoid, and two products, each by itself
        elements = 5 * moe.ffn_hidden_size
        terms.append(
            term("experts, limited activation", **routed, elements=elements, bytes=saved.activation).over(tp=sizes.etp)
        )
    if moe.shared_ffn_hidden_size is not None:
        whole: dict[str, float] = {"tokens": tokens.count}
        terms += _gated_mlp_terms("shared expert", whole, moe.shared_ffn_hidden_size, sizes.tp, saved)
        if moe.shared_gate:
            terms.append(term("shared expert's gated output", **local, hidden=a.hidden_size, bytes=saved.activation))
    return terms


def _norm_terms(what: str, hidden: int, sizes: ParallelSizes, tokens: Tokens, saved: SavedBytes) -> list[Term]:
    """Its input, its statistics (fp32, one a token) and its output, the next linear layer's input."""
    local = {"tokens": tokens.count // sizes.sequence_shards}
    terms = [
        term(f"{what}, input", **local, hidden=hidden, bytes=saved.norm_input),
        term(f"{what}, statistics", **local, bytes=4),
        term(f"{what}, output", **local, hidden=hidden, bytes=saved.linear_input),
    ]
    if saved.norm_output:
        terms.append(term(f"{what}, normalized input", **local, hidden=hidden, bytes=saved.norm_output))
    return terms


def _qk_norm_terms(
    queries: int, keys: int, are_copied: bool, sizes: ParallelSizes, tokens: Tokens, saved: SavedBytes
) -> list[Term]:
    """Of the norms of queries and keys. Inputs saved as they came are views of what is counted already.

    are_copied: queries of more than one group lie apart, and are copied together.
    """
    inputs = queries + keys
    if saved.norm_input == saved.activation:
        inputs = queries if are_copied else 0
    elements = {"inputs": (inputs, saved.norm_input), "normalized inputs": (queries + keys, saved.norm_output)}
    return [
        term(f"query and key norms, {what}", tokens=tokens.count, elements=number, bytes=size).over(tp=sizes.tp)
        for what, (number, size) in elements.items()
        if number and size
    ]


def _gated_mlp_terms(what: str, tokens: dict[str, float], ffn: int, tp: int, saved: SavedBytes) -> list[Term]:
    return [
        term(f"{what}, gate and up", **tokens, elements=2 * ffn, bytes=saved.activation).over(tp=tp),
        term(f"{what}, activation", **tokens, elements=ffn, bytes=saved.linear_input).over(tp=tp),
    ]
