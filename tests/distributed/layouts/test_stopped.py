"""SIGTERM inside a pass over micro-batches: every rank stops at its next one, in every schedule, and nothing is lost.

One rank gets the signal, in the log-prob pass of an iteration, then in the midst of a mini-batch, then while the policy
is exported. The same command, given again each time, is bit by bit the run that nobody told.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.layouts import models
from tests.distributed.layouts.cases import EP, OVERLAPPED, PACKED, PP, ROWS, VPP, Case
from tests.distributed.layouts.reference import Settings
from tests.distributed.torchrun import run_once

WORKER = Path(__file__).with_name("stopped_worker.py")
SHORT = Settings(iterations=2, minibatch_size=12)

CASES = [
    Case("pp2", 2, {PP: 2, ROWS: 2}),
    Case("dp2-overlapped", 2, {**OVERLAPPED, ROWS: 1}),
    Case("ep2", 2, {EP: 2, ROWS: 1}, "deepseek-v3"),
    Case("dp2-overlapped-pp2-vpp2-packed", 4, {**OVERLAPPED, PP: 2, VPP: 2, PACKED: 24}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stopped")
    for kind in {case.model for case in CASES}:
        models.make_model(kind, path / kind)
    models.write_rollouts(path / "rollouts.jsonl")
    return path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_continues_as_if_nobody_had_told_it(case: Case, folder: Path) -> None:
    todo = folder / f"runs-{case.world_size}.json"
    others = [Case(c.name, c.world_size, c.overrides, c.model, SHORT) for c in CASES]
    todo.write_text(json.dumps([other.arguments(folder) for other in others if other.world_size == case.world_size]))
    run_once(WORKER, todo, case.world_size)
    whole = folder / "out" / case.name / "whole"
    stopped = whole.with_name("stopped")
    assert numbers(stopped) == numbers(whole)
    assert weights(stopped) == weights(whole)


def numbers(output: Path) -> list[dict[str, float]]:
    """What was logged and isn't the clock's."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "seconds" not in k and "per_second" not in k} for line in lines]


def weights(output: Path) -> bytes:
    return (output / "hf" / "model.safetensors").read_bytes()
