"""Weights, gradients and optimizer states of whole models by the well-known bytes a parameter.

What Megatron-Core allocates is compared in tests/distributed/planning, to the byte.
"""

from __future__ import annotations

from sppo_planner.model_state import Rank, model_state


def state(job, **changes):
    options = {"itemsize": job.itemsize, "distributed_optimizer": True} | changes
    return model_state(job.table, job.sizes, Rank(), **options)


def test_bytes_a_parameter_of_mixed_precision(make_job):
    """Rajbhandari et al., "ZeRO" (2019): 2 + 2 + 12 bytes, here with fp32 gradients 2 + 4 + 12."""
    found = state(make_job(gpus=1), distributed_optimizer=False)
    per_parameter = [part.value / found.elements for part in (found.weights, found.gradients, found.optimizer)]
    assert per_parameter == [2, 4, 12]


def test_fp32_has_no_second_copy_of_parameters(make_job):
    found = state(make_job("precision.dtype=fp32", gpus=1), distributed_optimizer=False)
    per_parameter = [part.value / found.elements for part in (found.weights, found.gradients, found.optimizer)]
    assert per_parameter == [4, 4, 8]


def test_the_distributed_optimizer_shards_over_replicas_and_context(make_job):
    alone = state(make_job(gpus=1))
    for overrides in ([], ["parallelism.context_parallel_size=4"]):
        found = state(make_job(*overrides, gpus=64))
        assert found.weights.value == alone.weights.value
        assert abs(found.optimizer.value - alone.optimizer.value / 64) <= 12 * 128


def test_expert_states_are_sharded_over_the_expert_replicas_alone(make_job):
    layout = ["parallelism.expert_model_parallel_size=8"]
    found = state(make_job(*layout, model="Qwen3-30B-A3B", gpus=16))
    experts = 48 * 128 // 8 * 3 * 2048 * 768
    assert found.expert_gradient_elements == experts
    owned = experts / 2 + (found.elements - experts) / 16
    assert abs(found.optimizer.value - 12 * owned) <= 12 * 128
