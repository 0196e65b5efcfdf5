"""Promises 1 and 2: the same losses, gradient norms and weights in every layout, equal to the plain definition's.

The layouts run through the real command's code, `sppo_megatron.train.run`, on the real Megatron-Core; one torchrun for
all cases of a number of ranks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.layouts import models, reference
from tests.distributed.layouts.cases import CASES, Case
from tests.distributed.layouts.comparison import assert_trained_as
from tests.distributed.torchrun import ROOT, run_once

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layouts")
    for kind in models.CONFIGS:
        models.make_model(kind, path / kind)
    models.write_rollouts(path / "rollouts.jsonl")
    return path


@pytest.fixture(scope="module")
def outputs(folder: Path):
    """The output folder of a case; all cases of a world size run when the first is asked for."""

    def of(case: Case) -> Path:
        todo = folder / f"runs-{case.world_size}.json"
        runs = [(other.name, other.arguments(folder)) for other in CASES if other.world_size == case.world_size]
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
    cases = [case for case in CASES if case.name in ("one-process", "pp2-vpp2", "ep2-qwen2-moe-packed")]
    todo = {}
    for case in cases:
        (checkpoint,) = (outputs(case) / "checkpoints").glob("step_*/megatron")
        source = ["--megatron-path", str(checkpoint), "--hf-path", str(folder / case.model)]
        target = ["--output", str(folder / "converted" / case.name)]
        todo[case.name] = ["convert_megatron_to_hf", *source, *target]
    (folder / "commands.json").write_text(json.dumps(todo))
    done = subprocess.run(
        [sys.executable, str(HERE.parent / "conversion" / "commands.py"), str(folder / "commands.json")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads(done.stdout.splitlines()[-1])
    for case in cases:
        assert results[case.name][0] == 0, results[case.name]
        own = load_file(outputs(case) / "hf" / "model.safetensors")
        converted = load_file(folder / "converted" / case.name / "model.safetensors")
        assert own.keys() == converted.keys()
        assert all(torch.equal(own[name], converted[name]) for name in own)
