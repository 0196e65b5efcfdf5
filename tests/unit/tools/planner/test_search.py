"""The layouts that are listed: valid, complete within their bounds, in order."""

from __future__ import annotations

from itertools import pairwise

import pytest

from sppo_megatron.config.parallelism import check_layout, check_processes
from sppo_planner.cluster import GIB
from sppo_planner.memory import memory
from sppo_planner.search import find_problems, layouts, plan, search

LONG = ("train.max_tokens_per_micro_batch=8192", "rollout.max_response_length=7168")


@pytest.mark.parametrize(("model", "gpus"), [("Qwen2.5-7B", 16), ("Qwen3-30B-A3B", 8)])
def test_every_layout_is_valid_and_there_once(make_job, model, gpus):
    job = make_job(*LONG, model=model, gpus=gpus)
    found = list(layouts(job))
    for layout in found:
        check_processes(layout, gpus)
        check_layout(layout, **job.architecture.layout_sizes())
    assert len({str(layout) for layout in found}) == len(found)


def test_layouts_of_one_node_by_hand(make_job):
    """Qwen2.5-1.5B, 12 heads and 2 key-value heads, 28 layers, no context parallelism for 1,536 tokens."""
    found = layouts(make_job(model="Qwen2.5-1.5B", gpus=8))
    names = ("tensor", "pipeline", "virtual_pipeline")
    sizes = {tuple(getattr(each, f"{name}_model_parallel_size") for name in names) for each in found}
    expected = {(tp, pp) for tp in (1, 2, 4) for pp in (1, 2, 4) if tp * pp <= 8}
    assert {each[:2] for each in sizes} == expected
    assert {each[2] for each in sizes if each[1] == 2} == {None, 2}  # 14 layers a stage


def test_best_first_and_what_does_not_fit_last(make_job):
    found = search(make_job(*LONG, gpus=8))
    fitting = [each for each in found if each.fits]
    assert found[: len(fitting)] == fitting and 0 < len(fitting) < len(found)
    assert all(a.times.total <= b.times.total for a, b in pairwise(fitting))
    assert all(a.memory.total <= b.memory.total for a, b in pairwise(found[len(fitting) :]))


def test_recomputation_is_as_little_as_fits(make_job):
    job = make_job("train.max_tokens_per_micro_batch=32768", "rollout.engine=replay", gpus=64)
    found = plan(job)
    assert found.fits and found.job.config.model.recompute_granularity == "full"
    assert found.activations["none"] > 40 * GIB > found.activations["full"]
    assert found.activations["none"] > found.activations["selective"] > found.activations["full"]
    assert job.config.model.recompute_granularity is None  # the job given is left alone
    small = make_job("train.max_tokens_per_micro_batch=2048", "rollout.engine=replay", gpus=64)
    assert plan(small).job.config.model.recompute_granularity is None
    assert plan(small, ("full",)).memory.total == memory(plan(small, ("full",)).job).total


def test_vllms_share_must_hold_the_weights(make_job):
    job = make_job("rollout.engine=vllm", "rollout.vllm.gpu_memory_utilization=0.15", gpus=64)
    assert memory(job).total < 80 * GIB and not plan(job).fits


def test_problems_are_those_of_validation(make_job):
    architecture = make_job().architecture
    layout = make_job("parallelism.tensor_model_parallel_size=3").config.parallelism
    problems = find_problems(architecture, layout, 8)
    assert any("8 processes" in problem for problem in problems)
    assert any("28 attention heads" in problem for problem in problems)
