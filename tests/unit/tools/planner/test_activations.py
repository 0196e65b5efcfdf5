"""Saved bytes of a layer by hand, and what parallelism and number formats change about them.

What real layers save is compared in tests/distributed/planning.
"""

from __future__ import annotations

import pytest

from sppo_planner.activations import SavedBytes, Tokens, attention_terms, dense_mlp_terms, mixture_terms
from sppo_planner.parallel_sizes import ParallelSizes

TOKENS = Tokens(4096, 4096)
BF16 = SavedBytes.of(2, transformer_engine=True, fp8=False)


def sizes(tp: int = 1, *, sp: bool = False, ep: int = 1, etp: int | None = None) -> ParallelSizes:
    return ParallelSizes(tp * ep, tp, 1, 1, 1, ep, etp or tp, sp)


def total(terms) -> float:
    return sum(each.value for each in terms)


def test_a_dense_layer_by_hand(make_job):
    """Llama-3.1-8B in bf16: bytes a token of everything that a backward pass reads."""
    a = make_job(model="Llama-3.1-8B").architecture
    h, q, kv, f = 4096, 4096, 1024, 14336
    norms = 2 * (2 * h + 4 + 2 * h)
    attention = 2 * (q + 2 * kv) + 2 * (q + kv) + 2 * 4 * 128 + 2 * q + 4 * 32
    mlp = 2 * 2 * f + 2 * f
    terms = attention_terms(a, sizes(), TOKENS, BF16) + dense_mlp_terms(a, sizes(), TOKENS, BF16)
    assert total(terms) == 4096 * (norms + attention + mlp)


def test_tensor_parallelism_leaves_the_sequence_whole_and_sequence_parallelism_cuts_it(make_job):
    """Korthikanti et al. 2022, (2) and (4): of the terms, tp divides those inside, sp the rest."""
    a = make_job(model="Llama-3.1-8B").architecture

    def layer(layout):
        return total(attention_terms(a, layout, TOKENS, BF16) + dense_mlp_terms(a, layout, TOKENS, BF16))

    rotary, outside = 4096 * 2 * 4 * 128, 4096 * 2 * (4 * 4096 + 4)
    inside = layer(sizes()) - rotary - outside
    assert layer(sizes(8)) == outside + rotary + inside / 8
    assert layer(sizes(8, sp=True)) == outside / 8 + rotary + inside / 8


def test_fp8_saves_inputs_of_linear_layers_in_one_byte(make_job):
    a = make_job(model="Llama-3.1-8B").architecture
    fp8 = SavedBytes.of(2, transformer_engine=True, fp8=True)
    saved = total(dense_mlp_terms(a, sizes(), TOKENS, BF16)) - total(dense_mlp_terms(a, sizes(), TOKENS, fp8))
    assert saved == 4096 * (4096 + 14336)


def test_torch_norms_save_twice_in_fp32(make_job):
    a = make_job(model="Llama-3.1-8B").architecture
    torch_norms = SavedBytes.of(2, transformer_engine=False, fp8=False)
    more = total(dense_mlp_terms(a, sizes(), TOKENS, torch_norms)) - total(dense_mlp_terms(a, sizes(), TOKENS, BF16))
    assert more == 4096 * 4096 * (4 + 4 - 2)


@pytest.mark.parametrize("ep", [1, 8])
def test_a_mixture_keeps_every_choice_wherever_its_expert_is(make_job, ep):
    """Expert parallelism moves tokens about; each rank gets as many as it gives."""
    a = make_job(model="Qwen3-30B-A3B").architecture
    terms = mixture_terms(a, sizes(ep=ep), TOKENS, BF16, 1.0)
    h, f, experts, choices = 2048, 768, 128, 8
    router = choices * 4 + experts * 8 + choices * 16
    routed = choices * (2 * h + 2 * 3 * f + 4)
    assert total(terms) == 4096 * (2 * 2 * h + 4 + router + routed)


def test_expert_tensor_parallelism_gathers_tokens_and_cuts_experts(make_job):
    a = make_job(model="Qwen3-30B-A3B").architecture

    def of(what, layout):
        return next(each.value for each in mixture_terms(a, layout, TOKENS, BF16, 1.0) if each.what == what)

    one, four = sizes(4, sp=True, etp=1), sizes(4, sp=True, etp=4)
    assert of("dispatched tokens", four) == 4 * of("dispatched tokens", one)
    assert of("experts, activation", four) == of("experts, activation", one)


def test_imbalance_is_of_the_experts_alone(make_job):
    a = make_job(model="Qwen3-30B-A3B").architecture
    even, busy = (mixture_terms(a, sizes(), TOKENS, BF16, imbalance) for imbalance in (1.0, 1.5))
    grown = {each.what for each, other in zip(even, busy, strict=True) if other.value > each.value}
    assert grown == {"dispatched tokens", "experts, gate and up", "experts, activation", "weights of the choices"}
