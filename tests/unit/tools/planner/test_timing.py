"""Estimated seconds: the published counts of operations, and what each resource does to them."""

from __future__ import annotations

import dataclasses

import pytest

from sppo_planner.job import Job
from sppo_planner.timing import times

PACKED = "train.max_tokens_per_micro_batch=8192"
TP2 = ("parallelism.tensor_model_parallel_size=2", "parallelism.sequence_parallel=true")


def seconds(job: Job, stage: str, what: str = "") -> float:
    return sum(each.value for each in times(job).stages[stage].terms if what in each.what)


def test_training_is_six_operations_a_parameter_and_token(make_job):
    """Kaplan et al. 2020: C ≈ 6 N D, of the matrices that a token meets."""
    job = make_job(PACKED, gpus=1)
    tokens = job.micro_batches * job.tokens.count
    expected = 6 * job.table.active_matrix_elements * tokens / (989e12 * 0.45)
    assert seconds(job, "training", "matrix products") == pytest.approx(expected)
    assert seconds(job, "old log-probs", "matrix products") == pytest.approx(expected / 3)


def test_attention_is_of_the_causal_half(make_job):
    """4 s² h a sequence and layer forward, half of it causal, twice that backward."""
    job = make_job("train.micro_batch_size=1", gpus=1)
    flops = 3 * 256 * 28 * 4 * 1536**2 / 2 * 3584
    assert seconds(job, "training", "attention") == pytest.approx(flops / (989e12 * 0.45))


def test_full_recomputation_costs_a_third_more(make_job):
    job, again = make_job(PACKED), make_job(PACKED, "model.recompute_granularity=full")
    ratio = seconds(again, "training", "matrix products") / seconds(job, "training", "matrix products")
    assert ratio == pytest.approx(4 / 3)


@pytest.mark.parametrize("vpp", [None, 7])
def test_bubble(make_job, vpp):
    """(p − 1) / (v m) of the ideal time."""
    layout = ["parallelism.pipeline_model_parallel_size=4", PACKED]
    virtual = [f"parallelism.virtual_pipeline_model_parallel_size={vpp}"] if vpp else []
    job, whole = make_job(*layout, *virtual, gpus=4), make_job(PACKED, gpus=1)
    per_micro_batch = seconds(whole, "training", "matrix products") / whole.micro_batches / 4
    m = job.micro_batches
    expected = per_micro_batch * m * (1 + 3 / ((vpp or 1) * m))
    assert seconds(job, "training", "matrix products") == pytest.approx(expected)


def test_experts_count_by_the_choices(make_job):
    dense, mixture = make_job(PACKED, model="Qwen2.5-32B"), make_job(PACKED, model="Qwen3-30B-A3B")
    ratio = seconds(dense, "training", "matrix products") / seconds(mixture, "training", "matrix products")
    assert ratio == pytest.approx(dense.table.active_matrix_elements / mixture.table.active_matrix_elements)


def test_a_group_beyond_a_node_has_the_networks_bandwidth(make_job):
    node = make_job(PACKED, *TP2)
    spread = dataclasses.replace(node, cluster=dataclasses.replace(node.cluster, gpus_per_node=1))
    ratio = seconds(spread, "training", "tensor parallel") / seconds(node, "training", "tensor parallel")
    assert ratio == pytest.approx(450 / 50)
    assert seconds(spread, "training", "matrix") == seconds(node, "training", "matrix")


def test_reduction_is_hidden_where_it_overlaps(make_job):
    plain = make_job(PACKED)
    overlapped = make_job(PACKED, "parallelism.overlap_grad_reduce=true")
    assert seconds(plain, "training", "data parallel") > 0
    assert seconds(overlapped, "training", "data parallel") == 0


def test_fp8_doubles_the_speed_of_the_layers_and_of_nothing_else(make_job):
    bf16, fp8 = make_job(PACKED), make_job(PACKED, "precision.fp8=e4m3")
    ratio = seconds(bf16, "training", "matrix") / seconds(fp8, "training", "matrix")
    assert ratio == pytest.approx(1979 / 989)
    assert seconds(bf16, "training", "LM head") == seconds(fp8, "training", "LM head")


def test_decoding_reads_the_weights_at_every_step(make_job):
    """One engine a GPU, 32 sequences each, all at once: as many steps as the longest response has tokens."""
    job = make_job("rollout.engine=vllm", "rollout.vllm.gpu_memory_utilization=0.5")
    expected = 512 * 7_615_616_512 * 2 / (3.35e12 * 0.7)
    assert seconds(job, "rollout", "weights read") == pytest.approx(expected)
    two = make_job("rollout.engine=vllm", "rollout.vllm.tensor_parallel_size=2")
    assert seconds(two, "rollout", "weights read") == pytest.approx(expected / 2)
    assert seconds(two, "rollout", "keys") == pytest.approx(seconds(job, "rollout", "keys"))  # 64 sequences over two


def test_a_small_cache_decodes_in_turns(make_job):
    """24 GiB less 14.2 of weights hold the keys and values of 119 sequences of 1536 tokens; 32·8 wait for them."""
    overrides = ("rollout.engine=vllm", "rollout.vllm.gpu_memory_utilization=0.3", "rollout.vllm.max_num_seqs=1024")
    job = make_job(*overrides, gpus=1)
    products = next(each for each in times(job).stages["rollout"].terms if each.what == "products")
    assert products.factors[:2] == ((-(-256 * 256 // 119), "steps"), (119, "sequences"))


def test_a_replay_generates_and_pushes_nothing(make_job):
    found = times(make_job("rollout.engine=replay")).stages
    assert found["rollout"].value == 0 and "push" not in found
