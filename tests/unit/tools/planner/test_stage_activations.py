"""Micro-batches in flight and recomputation."""

from __future__ import annotations

import pytest
from transformers import Qwen2MoeConfig

from sppo_megatron.hf.hf_config import read_architecture
from sppo_planner.activations import SavedBytes, Tokens
from sppo_planner.parallel_sizes import ParallelSizes
from sppo_planner.stage_activations import Recomputation, in_flight, layers_of_chunk, stage_activations

BF16 = SavedBytes.of(2, transformer_engine=True, fp8=False)


def sizes(pp: int = 1, vpp: int = 1) -> ParallelSizes:
    return ParallelSizes(pp, 1, pp, vpp, 1, 1, 1, False)


def test_one_forward_one_backward():
    assert [in_flight(sizes(4), stage, 16) for stage in range(4)] == [4, 3, 2, 1]
    assert [in_flight(sizes(4), stage, 2) for stage in range(4)] == [2, 2, 2, 1]
    assert in_flight(sizes(), 0, 16) == 1


def test_interleaved():
    """Megatron-LM's figure 4: four stages of two chunks warm up with 10, 8, 6 and 4 forward passes, then add one."""
    assert [in_flight(sizes(4, 2), stage, 16) for stage in range(4)] == [11, 9, 7, 5]
    assert in_flight(sizes(4, 2), 0, 4) == 8  # all that there are


def of_stage(job, layout: ParallelSizes, stage: int = 0, **recompute):
    return stage_activations(
        job.architecture,
        layout,
        stage,
        micro_batches=16,
        tokens=Tokens(1000, 1000),
        saved=BF16,
        recompute=Recomputation(**recompute),
        expert_imbalance=1.0,
    )


def test_the_stage_is_its_layers_times_those_in_flight(make_job):
    job = make_job(model="Llama-3.1-8B")
    whole, of_four = of_stage(job, sizes()).held.value, of_stage(job, sizes(4), 1).held.value
    assert of_four == whole / 4 * 3


def test_full_recomputation_keeps_inputs_and_repeats_one_piece(make_job):
    job = make_job(model="Llama-3.1-8B")
    layer = of_stage(job, sizes()).held.value / 32
    hidden = 1000 * 4096 * 2
    one = of_stage(job, sizes(), granularity="full")
    assert (one.held.value, one.recomputed.value) == (32 * hidden, layer)
    four = of_stage(job, sizes(), granularity="full", num_layers=4)
    assert (four.held.value, four.recomputed.value) == (8 * hidden, 4 * layer)
    block = of_stage(job, sizes(), granularity="full", method="block", num_layers=12)
    assert (block.held.value, block.recomputed.value) == (pytest.approx(12 * hidden + 20 * layer), 0)
    assert of_stage(job, sizes(), granularity="full", method="block", num_layers=32) == one


def test_selective_recomputation_drops_the_softmax_statistics(make_job):
    job = make_job(model="Llama-3.1-8B")
    found = of_stage(job, sizes(), granularity="selective").held.value
    assert found == of_stage(job, sizes()).held.value - 32 * 1000 * 32 * 4


def test_layers_of_both_kinds():
    """Eight layers on two stages, of which 1, 4 and 5 are dense."""
    a = read_architecture(Qwen2MoeConfig(num_hidden_layers=8, mlp_only_layers=[1, 4, 5], num_experts_per_tok=2))
    counts = [layers_of_chunk(a, sizes(2), stage) for stage in range(2)]
    assert counts == [(1, 3), (2, 2)]
    interleaved = [layers_of_chunk(a, sizes(2, 2), stage) for stage in range(2)]  # layers 0 1 4 5 and 2 3 6 7
    assert interleaved == [(1.5, 0.5), (0, 2)]
