"""The verdict, its reasons, and suggestions that keep their word."""

from __future__ import annotations

import dataclasses

import pytest

from sppo_planner.fit import judge

TP2 = ("parallelism.tensor_model_parallel_size=2", "parallelism.sequence_parallel=true")
TOO_LONG = "train.max_tokens_per_micro_batch=40960"


def test_what_fits_has_no_problems(make_job):
    verdict = judge(make_job(*TP2, "train.max_tokens_per_micro_batch=8192"))
    assert (verdict.problems, verdict.suggestions) == ([], [])


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ((*TP2, TOO_LONG), "backward: weights 7.1, gradients 14.2"),
        (("optimizer.use_distributed_optimizer=false",), "optimizer 85.1"),
        ((*TP2, "rollout.batch_size=4096", "train.prompts_per_iteration=4096"), "generation"),
        ((*TP2, "rollout.engine=vllm", "rollout.vllm.gpu_memory_utilization=0.1"), "the weights take 14.2"),
        ((*TP2, "train.minibatch_size=3"), "4 data-parallel replicas share mini-batches of 3 sequences"),
    ],
)
def test_reasons_and_suggestions_that_help(make_job, overrides, reason):
    verdict = judge(make_job(*overrides, gpus=8))
    assert any(reason in problem for problem in verdict.problems)
    assert verdict.suggestions
    for suggestion in verdict.suggestions:
        changed, _, gpus = suggestion.partition(" on ")
        together = {each.partition("=")[0]: each for each in [*overrides, *changed.split()]}
        better = make_job(*together.values(), gpus=int(gpus.split()[0]) if gpus else 8)
        assert judge(better).problems == []


def test_a_model_too_large_for_the_cluster_gets_a_layout_on_more(make_job):
    verdict = judge(make_job(*TP2, "rollout.engine=vllm", model="Llama-3.1-70B", gpus=8))
    (suggestion,) = verdict.suggestions
    assert suggestion.endswith(" GPUs")
    overrides, _, gpus = suggestion.removesuffix(" GPUs").rpartition(" on ")
    better = make_job("rollout.engine=vllm", *overrides.split(), model="Llama-3.1-70B", gpus=int(gpus))
    assert judge(better).problems == []


def test_no_suggestion_where_nothing_helps(make_job):
    job = make_job("rollout.engine=replay", gpus=1)
    tiny = dataclasses.replace(job.cluster.gpu, memory_gib=4)
    assert judge(dataclasses.replace(job, cluster=dataclasses.replace(job.cluster, gpu=tiny))).suggestions == []
