"""Activations of a pipeline stage at their peak: micro-batches in flight, and what recomputation leaves of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sppo_megatron.hf.architecture import Architecture
from sppo_planner.activations import (
    SOFTMAX_STATISTICS,
    SavedBytes,
    Tokens,
    attention_terms,
    dense_mlp_terms,
    mixture_terms,
)
from sppo_planner.arithmetic import Part, Term, term
from sppo_planner.parallel_sizes import ParallelSizes

SOURCE = "Korthikanti et al. 2022, section 4; attention without a score matrix"


@dataclass(frozen=True)
class Recomputation:
    """Megatron's recompute_granularity, recompute_method and recompute_num_layers."""

    granularity: str | None = None
    method: str = "uniform"
    num_layers: int = 1


def in_flight(sizes: ParallelSizes, stage: int, micro_batches: int) -> int:
    """Micro-batches whose activations a model chunk of this stage holds at the peak, summed over its chunks.

    1F1B, or its interleaved form: Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters
    Using Megatron-LM" (2021), section 2.2; the warm-up is Megatron-Core's.
    """
    if sizes.vpp == 1:
        return min(micro_batches, sizes.pp - stage)
    warm_up = 2 * (sizes.pp - stage - 1) + (sizes.vpp - 1) * sizes.pp
    return min(micro_batches * sizes.vpp, warm_up + 1)


@dataclass(frozen=True)
class StageActivations:
    """held: at the end of a forward pass, all micro-batches in flight. recomputed: what one recomputed piece saves
    again while its backward pass runs, which is after that of the head."""

    held: Part
    recomputed: Part


def stage_activations(
    a: Architecture,
    sizes: ParallelSizes,
    stage: int,
    *,
    micro_batches: int,
    tokens: Tokens,
    saved: SavedBytes,
    recompute: Recomputation,
    expert_imbalance: float,
) -> StageActivations:
    """micro_batches: of one optimizer step on one replica. The embedding's and the head's own are not in here."""
    count = in_flight(sizes, stage, micro_batches)
    dense, mixture = layers_of_chunk(a, sizes, stage)
    attention = attention_terms(a, sizes, tokens, saved)
    if recompute.granularity == "selective":
        attention = [each for each in attention if each.what != SOFTMAX_STATISTICS]
    kinds: list[tuple[float, list[Term]]] = []
    if dense:
        kinds.append((dense, attention + dense_mlp_terms(a, sizes, tokens, saved)))
    if mixture:
        kinds.append((mixture, attention + mixture_terms(a, sizes, tokens, saved, expert_imbalance)))
    terms, again = [], []
    kept, inputs, at_once = _layers(dense + mixture, recompute)
    if inputs:
        hidden = {"tokens": tokens.count // sizes.sequence_shards, "hidden": a.hidden_size, "bytes": saved.activation}
        terms.append(term("inputs of recomputed layers", in_flight=count, inputs=inputs, **hidden))
        largest = max((kind for _, kind in kinds), key=lambda kind: sum(each.value for each in kind))
        again = [each.times(layers=at_once) for each in largest]
    for layers, kind in kinds:
        share = layers * kept / (dense + mixture)
        terms += [each.times(in_flight=count, layers=share) for each in kind if share]
    return StageActivations(Part("activations", tuple(terms), SOURCE), Part("recomputed layers", tuple(again)))


def _layers(layers: float, recompute: Recomputation) -> tuple[float, float, float]:
    """(layers that keep everything, inputs kept of the others, layers recomputed at once) of one model chunk.

    If "block" leaves layers alone, these come first in the backward pass and are gone before one is recomputed.
    """
    if recompute.granularity != "full":
        return layers, 0, 0
    if recompute.method == "block":
        recomputed = min(layers, recompute.num_layers)
        return layers - recomputed, recomputed, max(0, 1 - (layers - recomputed))
    return 0, math.ceil(layers / recompute.num_layers), min(layers, recompute.num_layers)


def layers_of_chunk(a: Architecture, sizes: ParallelSizes, stage: int) -> tuple[float, float]:
    """(dense, mixture) layers of this stage's model chunks, on average over its chunks."""
    per_chunk = a.num_layers // (sizes.pp * sizes.vpp)
    first = [(virtual * sizes.pp + stage) * per_chunk for virtual in range(sizes.vpp)]
    layers = [layer for start in first for layer in range(start, start + per_chunk)]
    mixture = sum(a.mixture is not None and a.mixture.layers[layer] for layer in layers)
    return (len(layers) - mixture) / sizes.vpp, mixture / sizes.vpp


def head_part(
    a: Architecture,
    sizes: ParallelSizes,
    *,
    tokens: Tokens,
    response_tokens: int,
    padded_vocab_size: int,
    saved: SavedBytes,
    fused: bool,
) -> Part:
    """The final norm and the LM head's loss or log-probs on the last stage: what is kept until its backward pass.

    response_tokens: of the micro-batch on this context-parallel rank; only their log-probs are computed. fused: the
    loss head keeps its gradients in fp32; else the log-probs keep their inputs.
    """
    local, shard = tokens.count // sizes.sequence_shards, padded_vocab_size // sizes.tp
    of_norm = saved.norm_input + saved.norm_output
    terms = [term("final norm, input", tokens=local, hidden=a.hidden_size, bytes=of_norm)]
    rows = {"response_tokens": response_tokens, "hidden": a.hidden_size}
    if fused:
        terms.append(term("gradient of hidden states, fp32", **rows, bytes=4))
        terms.append(term("gradient of the head, fp32", rows=shard, hidden=a.hidden_size, bytes=4))
    else:
        terms.append(term("rows of hidden states", **rows, bytes=saved.activation))
    return Part("LM head", tuple(terms), "policy/lm_head.py")
