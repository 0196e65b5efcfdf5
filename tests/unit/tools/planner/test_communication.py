"""Bytes that a GPU receives, by hand."""

from __future__ import annotations

import pytest

from sppo_planner.communication import Pass, gradient_traffic, layer_traffic, push_traffic

TRAINING = Pass(10, 1, backward=True)
HIDDEN = 8192 * 3584 * 2  # bytes of one micro-batch
PACKED = "train.max_tokens_per_micro_batch=8192"


def sizes(**values) -> list[str]:
    return [f"parallelism.{name}={value}" for name, value in values.items()]


def test_one_gpu_receives_nothing(make_job):
    job = make_job(gpus=1)
    assert layer_traffic(job, TRAINING) == {} and gradient_traffic(job) == {}


def test_tensor_parallel_without_sequences_cut(make_job):
    """Narayanan et al. 2021, section 3.2: 8 b s h (t − 1)/t elements a layer and micro-batch."""
    found = layer_traffic(make_job(PACKED, *sizes(tensor_model_parallel_size=4)), TRAINING)["tp"]
    assert found.terms[0].value == pytest.approx(10 * 28 * 8 * HIDDEN * 3 / 4)


def test_sequence_parallel_gathers_once_more_and_recomputation_again(make_job):
    job = make_job(PACKED, *sizes(tensor_model_parallel_size=4, sequence_parallel="true"))
    halves = 10 * 56 * HIDDEN * 3 / 4
    assert layer_traffic(job, TRAINING)["tp"].terms[0].value == pytest.approx(5 * halves)
    assert layer_traffic(job, Pass(10, 2, True))["tp"].terms[0].value == pytest.approx(7 * halves)
    assert layer_traffic(job, Pass(10, 1, False))["tp"].terms[0].value == pytest.approx(2 * halves)


def test_pipeline(make_job):
    job = make_job(PACKED, *sizes(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=7))
    assert layer_traffic(job, TRAINING)["pp"].value == 10 * 7 * 2 * HIDDEN
    assert layer_traffic(job, Pass(10, 1, False))["pp"].value == 10 * 7 * HIDDEN


def test_context_parallel_moves_keys_and_values_alone(make_job):
    job = make_job(PACKED, *sizes(context_parallel_size=4))
    assert layer_traffic(job, TRAINING)["cp"].value == 10 * 28 * 3 * 3 * 2048 * 2 * 512 * 2


def test_expert_parallel(make_job):
    """Dispatch and combine, forward and backward, of eight choices a token."""
    layout = sizes(tensor_model_parallel_size=4, sequence_parallel="true", expert_model_parallel_size=8)
    job = make_job(PACKED, *layout, *sizes(expert_tensor_parallel_size=1), model="Qwen3-30B-A3B")
    tokens = 8192 // 4 * 8 * 2048 * 2
    assert layer_traffic(job, TRAINING)["ep"].value == pytest.approx(10 * 48 * 4 * tokens * 7 / 8)


def test_gradients(make_job):
    sharded = gradient_traffic(make_job(gpus=8))["dp"]
    elements = sharded.terms[0].value / 4 / 7 * 8
    assert sharded.value == pytest.approx(elements * (4 + 2) * 7 / 8)
    plain = gradient_traffic(make_job("optimizer.use_distributed_optimizer=false", gpus=8))["dp"]
    assert plain.value == pytest.approx(7_615_616_512 * 2 * 4 * 7 / 8)


def test_experts_are_reduced_over_their_own_replicas(make_job):
    found = gradient_traffic(make_job(*sizes(expert_model_parallel_size=4), model="Qwen3-30B-A3B"))
    experts = 48 * 32 * 3 * 2048 * 768
    assert found["edp"].value == pytest.approx(experts * 6 / 2)
    alone = gradient_traffic(make_job(*sizes(expert_model_parallel_size=8), model="Qwen3-30B-A3B"))
    assert alone.keys() == {"dp"}


def test_push(make_job):
    layout = sizes(tensor_model_parallel_size=4)
    assert push_traffic(make_job(*layout)) is None
    assert push_traffic(make_job("rollout.engine=vllm")) is None  # every rank holds the whole model
    found = push_traffic(make_job(*layout, "rollout.engine=vllm"))
    assert found is not None and found.value == pytest.approx(7_615_616_512 * 2 * 3 / 4)
