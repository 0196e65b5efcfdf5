"""Promises 1 and 2: the same losses, gradient norms and weights in every layout, equal to the plain definition's.

The layouts run through the real command's code, `sppo_megatron.train.run`, on the real Megatron-Core; one torchrun for
all cases of a number of ranks.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from tests.distributed.layouts import models, reference
from tests.distributed.layouts.cases import CASES, Case
from tests.distributed.layouts.comparison import assert_checkpoints_convert, assert_trained_as
from tests.distributed.torchrun import run_once

HERE = Path(__file__).parent
CONVERTED = ("one-process", "pp2-vpp2", "ep2-qwen2-moe-packed")  # whose checkpoints are


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layouts")
    for kind in models.CONFIGS:
        models.make_model(kind, path / kind)
    models.make_model("qwen2-tied", path / "qwen2-tied-earlier", seed=1)  # MNPO's opponent
    models.write_rollouts(path / "rollouts.jsonl")
    return path


@pytest.fixture(scope="module")
def outputs(folder: Path, request: pytest.FixtureRequest):
    """The output folder of a case; all cases of a world size that were chosen run when the first is asked for."""
    parameters = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    chosen = {getattr(of_test.get("case"), "name", None) for of_test in parameters} | set(CONVERTED)

    def of(case: Case) -> Path:
        todo = folder / f"runs-{case.world_size}.json"
        cases = [other for other in CASES if other.name in chosen and other.world_size == case.world_size]
        runs = [(other.name, other.arguments(folder)) for other in cases]
        todo.write_text(json.dumps(runs))
        run_once(HERE / "worker.py", todo, case.world_size)
        return folder / "out" / case.name

    return of


@cache
def expected(folder: Path, model: str, settings: reference.Settings) -> reference.Result:
    return reference.train(folder / model, folder / "rollouts.jsonl", settings)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_plain_definition(case: Case, folder: Path, outputs) -> None:
    assert_trained_as(expected(folder, case.model, case.settings), outputs(case))


def test_training_checkpoints_convert_to_hugging_face(folder: Path, outputs) -> None:
    """From whatever layout saved them: the same bytes as the run's own export."""
    cases = [case for case in CASES if case.name in CONVERTED]
    starts = {case.name: folder / case.model for case in cases}
    assert_checkpoints_convert(folder, {case.name: outputs(case) for case in cases}, starts)
