"""Which parts are there at which moment, and which moment counts."""

from __future__ import annotations

import pytest

from sppo_planner.cluster import GIB
from sppo_planner.memory import memory, memory_of_stage

TP2 = ("parallelism.tensor_model_parallel_size=2", "parallelism.sequence_parallel=true")


def test_the_total_is_what_stays_and_the_largest_moment(make_job):
    found = memory(make_job(*TP2, "train.max_tokens_per_micro_batch=8192"))
    resident = sum(part.value for part in found.resident)
    moments = {name: sum(part.value for part in parts) for name, parts in found.moments.items()}
    assert moments.keys() == {"backward", "loss", "old log-probs", "generation"}
    assert found.total == resident + max(moments.values())
    assert found.of_moment(found.peak) == max(moments.values())


def test_vllm_sleeps_while_the_trainer_works(make_job):
    """Its share and the activations are never there together."""
    small = memory(make_job(*TP2, "rollout.engine=vllm", "rollout.vllm.gpu_memory_utilization=0.4"))
    assert small.peak == "generation"
    assert small.of_moment("generation") == pytest.approx(0.4 * 80 * GIB)
    large = memory(make_job(*TP2, "rollout.engine=vllm", "train.max_tokens_per_micro_batch=32768"))
    assert large.peak in ("loss", "backward")
    assert large.total < sum(part.value for part in large.resident) + 0.5 * 80 * GIB + large.of_moment(large.peak)


def test_the_key_value_cache_of_the_trainers_own_model(make_job):
    """Two tensors of 4 heads of 128 in bf16, 28 layers, 256 sequences of 1024 + 512 tokens; none in a replay."""
    found = memory(make_job("rollout.batch_size=256", "train.prompts_per_iteration=4096", gpus=1))
    assert found.of_moment("generation") == 2 * 4 * 128 * 2 * 28 * 256 * 1536
    assert memory(make_job("rollout.engine=replay")).of_moment("generation") == 0


def test_the_last_stage_has_the_head_and_the_first_the_most_in_flight(make_job):
    job = make_job("parallelism.pipeline_model_parallel_size=4", "train.max_tokens_per_micro_batch=8192")
    first, last = (memory_of_stage(job, stage) for stage in (0, 3))
    assert "loss" in last.moments and "loss" not in first.moments
    assert first.part("activations") == 4 * last.part("activations")
    assert memory(job).total == max(first.total, last.total)


def test_the_loss_head(make_job):
    """The head's gradient in fp32, the rows of hidden states in fp32, and logits within the budget."""
    found = memory(make_job("train.micro_batch_size=1", "train.logits_budget_mib=100", gpus=1))
    head = next(part for part in found.moments["loss"] if part.name == "LM head")
    vocabulary = 152064
    assert head.value == 1536 * 3584 * 2 + 512 * 3584 * 4 + vocabulary * 3584 * 4
    assert found.part("logits") == max(100 * 2**20, next(p.value for p in found.moments["old log-probs"]))
    unfused = memory(make_job("train.fused_loss=false", gpus=1))
    assert unfused.part("LM head") == 1536 * 3584 * 2 + 512 * 3584 * 2


def test_fp8_keeps_copies_of_the_linear_layers_weights(make_job):
    job = make_job("precision.fp8=e4m3", gpus=1)
    copies = next(part for part in memory(job).resident if part.name == "FP8 weights")
    assert copies.value == 2 * job.table.active_matrix_elements
    stored = memory(make_job("precision.fp8=e4m3", "precision.fp8_param=true", gpus=1))
    assert "FP8 weights" not in [part.name for part in stored.resident]
