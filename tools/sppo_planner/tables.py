"""What `sppo plan` prints: a table of layouts, a verdict, the arithmetic of one layout, JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from sppo_planner.arithmetic import Part, Term
from sppo_planner.cluster import GIB
from sppo_planner.job import Job
from sppo_planner.memory import Memory
from sppo_planner.search import Plan
from sppo_planner.vllm_cache import find_vllm_problems

_COLUMNS = ("#", "layout", "recompute", "GiB", "weights", "grads", "optim", "activ", "logits", "peak at")
_MEMORY = ("weights", "gradients", "optimizer", "activations")


def print_plans(plans: Sequence[Plan], limit: int) -> None:
    """A table, best first."""
    stages = list(plans[0].times.stages)
    table = Table(*_COLUMNS, *(f"{stage} s" for stage in stages), "s/iteration", "GB/step", box=None, pad_edge=False)
    for number, plan in enumerate(plans[:limit], 1):
        table.add_row(str(number), *_row(plan, stages))
    console = _console()
    console.print(table)
    fitting = sum(plan.fits for plan in plans)
    console.print(
        f"\n{len(plans)} valid layouts, {fitting} of them fit into {plans[0].job.cluster.gpu.memory_gib:g} GiB a GPU. "
        "Memory is of the fullest pipeline stage, times are estimates: --explain --layout N shows the arithmetic."
    )
    for problem in find_vllm_problems(plans[0].job):
        console.print(f"none fits: {problem}")


def _row(plan: Plan, stages: Iterable[str]) -> list[str]:
    memory = plan.memory
    total = f"{memory.total / GIB:.1f}" + ("" if plan.fits else " no")
    parts = [f"{memory.part(name) / GIB:.1f}" for name in (*_MEMORY, "logits")]
    seconds = [f"{plan.times.stages[stage].value:.1f}" if stage in plan.times.stages else "-" for stage in stages]
    traffic = sum(part.value for part in plan.times.traffic.values())
    granularity = str(plan.job.config.model.recompute_granularity or "none")
    ends = [f"{plan.times.total:.1f}", f"{traffic / 1e9:.1f}"]
    return [describe_layout(plan.job), granularity, total, *parts, memory.peak, *seconds, *ends]


def describe_layout(job: Job) -> str:
    """TP4+SP PP2 VPP2 CP1 ... with the sizes that are 1 left out, and DP."""
    s = job.sizes
    names = [("TP", s.tp), ("PP", s.pp), ("VPP", s.vpp), ("CP", s.cp), ("EP", s.ep)]
    words = [
        f"{name}{size}" + ("+SP" if name == "TP" and s.sequence_parallel else "") for name, size in names if size > 1
    ]
    if job.architecture.mixture is not None and s.etp != s.tp:
        words.append(f"ETP{s.etp}")
    return " ".join([*words, f"DP{s.dp}"])


def print_verdict(plan: Plan | None, problems: Sequence[str], suggestions: Sequence[str]) -> None:
    """Fits or doesn't, why not, and what to change."""
    if plan is not None:
        memory, limit = plan.memory, plan.job.cluster.gpu.memory_gib
        print(
            f"{describe_layout(plan.job)}: {memory.total / GIB:.1f} of {limit:g} GiB a GPU, at the peak ({memory.peak})"
        )
        for name, size in _split(memory).items():
            print(f"  {name:<20} {size / GIB:8.2f} GiB")
        if not problems:
            for name, part in plan.times.stages.items():
                print(f"  {name:<20} {part.value:8.1f} s an iteration, estimated")
    print("does not fit:" if problems else "fits")
    for problem in problems:
        print(f"  {problem}")
    for suggestion in suggestions:
        print(f"  it would with {suggestion}")


def _split(memory: Memory) -> dict[str, float]:
    """Bytes of each part at the peak."""
    parts = (*memory.resident, *memory.moments[memory.peak])
    return {part.name: part.value for part in parts if part.value}


# ---------------------------------------------------------------------------------------------- the arithmetic


def print_explanation(plan: Plan) -> None:
    """Every number of a plan with the product that made it."""
    job, memory = plan.job, plan.memory
    print(f"\n{describe_layout(job)} on {job.cluster.gpus} GPUs, {job.cluster.gpus_per_node} a node")
    work = job.workload
    print(
        f"an iteration: {work.sequences} responses in {work.steps} optimizer steps; a step: {job.micro_batches} "
        f"micro-batches a replica of at most {work.micro_batch} tokens"
    )
    print(f"assumed: {', '.join(f'{name}={value:g}' for name, value in dataclasses.asdict(job.assumptions).items())}")
    print(f"\nMEMORY of a GPU of pipeline stage {memory.stage}, always")
    for part in memory.resident:
        _print_part(part, GIB, "GiB")
    for moment, parts in memory.moments.items():
        mark = ", the peak" if moment == memory.peak else ""
        print(f"\nMEMORY besides, {moment}{mark}: {memory.of_moment(moment) / GIB:.3f} GiB")
        for part in parts:
            _print_part(part, GIB, "GiB")
    print(f"\ntotal at the peak: {memory.total / GIB:.3f} of {job.cluster.gpu.memory_gib:g} GiB")
    others = ", ".join(f"{name} {size / GIB:.3f}" for name, size in plan.activations.items())
    print(f"activations in GiB by recompute_granularity: {others}")
    print("\nCOMMUNICATION that a GPU receives in an optimizer step")
    for part in plan.times.traffic.values():
        _print_part(part, 1e9, "GB")
    print(f"\nTIME of an iteration: {plan.times.total:.2f} s")
    for part in plan.times.stages.values():
        _print_part(part, 1, "s")


def _print_part(part: Part, unit: float, name: str) -> None:
    if not part.terms:
        return
    basis = f"   ({part.basis})" if part.basis else ""
    print(f"  {part.name} = {part.value / unit:.3f} {name}{basis}")
    for each in part.terms:
        print(f"    {each.what}: {each} = {each.value / unit:.4g} {name}")


# ---------------------------------------------------------------------------------------------- JSON


def as_json(job: Job, plans: Iterable[Plan]) -> dict[str, Any]:
    """Bytes and seconds; every part with its terms."""
    return {
        "model": job.config.model.hf_path,
        "parameters": job.table.total,
        "cluster": dataclasses.asdict(job.cluster),
        "assumptions": dataclasses.asdict(job.assumptions),
        "layouts": [_plan_json(plan) for plan in plans],
    }


def _plan_json(plan: Plan) -> dict[str, Any]:
    memory = plan.memory
    return {
        "layout": describe_layout(plan.job),
        "parallelism": dataclasses.asdict(plan.job.config.parallelism),
        "recompute_granularity": plan.job.config.model.recompute_granularity,
        "fits": plan.fits,
        "memory": {
            "total": memory.total,
            "pipeline_stage": memory.stage,
            "peak": memory.peak,
            "resident": _parts_json(memory.resident),
            "moments": {moment: _parts_json(parts) for moment, parts in memory.moments.items()},
        },
        "activations": plan.activations,
        "traffic": _parts_json(plan.times.traffic.values()),
        "seconds": _parts_json(plan.times.stages.values()) | {"iteration": plan.times.total},
    }


def _parts_json(parts: Iterable[Part]) -> dict[str, Any]:
    return {part.name: {"total": part.value, "terms": [_term_json(each) for each in part.terms]} for part in parts}


def _term_json(each: Term) -> dict[str, Any]:
    return {"what": each.what, "arithmetic": str(each), "value": each.value}


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=200)
