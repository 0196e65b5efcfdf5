"""Steps, micro-batches and their tokens."""

from __future__ import annotations

from math import ceil


def test_packed_micro_batches_hold_mean_sequences(make_job):
    job = make_job(
        "train.prompts_per_iteration=64",
        "train.minibatch_size=128",
        "train.epochs_per_iteration=2",
        "train.max_tokens_per_micro_batch=8192",
        "rollout.max_response_length=2048",
        mean_length=0.25,
    )
    assert job.workload.sequences == 512 and job.workload.steps == 8
    assert job.micro_batches == ceil(128 / 8 * (1024 + 512) / 8192)
    assert job.tokens.count == 8192


def test_a_sequence_above_the_budget_has_a_micro_batch_of_its_own(make_job):
    job = make_job("train.max_tokens_per_micro_batch=1000", "rollout.max_response_length=3000")
    assert job.tokens.count == 4024
    halves = make_job("parallelism.context_parallel_size=2", "train.max_tokens_per_micro_batch=8192")
    assert halves.tokens.count == 4096 and halves.sizes.dp == 4


def test_rows_are_padded_to_the_longest(make_job):
    job = make_job("train.micro_batch_size=4", "train.minibatch_size=64", "data.max_prompt_length=100")
    assert job.tokens.count == 4 * 612 and job.tokens.positions == 612
    assert job.micro_batches == 2


def test_interleaving_rounds_micro_batches_up_to_the_stages(make_job):
    layout = ("parallelism.pipeline_model_parallel_size=4", "parallelism.virtual_pipeline_model_parallel_size=7")
    assert make_job(*layout, "train.minibatch_size=10", gpus=8).micro_batches == 8


def test_pairs_are_two_sequences_a_prompt(make_job):
    assert make_job("objective.pairwise=dpo").workload.sequences == 64
