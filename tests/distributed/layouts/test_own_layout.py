"""Checkpoints that hold the optimizer as it lies in its buffers: the same layout continues from them bit by bit, and
another number of data-parallel ranks and, after `sppo reshard`, other layouts as if nothing had happened.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.layouts import models
from tests.distributed.layouts.cases import EP, PP, ROWS, SP, TP, Case
from tests.distributed.layouts.test_other_layout import WORKER, steps
from tests.distributed.torchrun import ROOT, run_once
from tests.forked import processes

SAVE = {"checkpoint.save_interval": 4, "checkpoint.keep_last": 5, ROWS: 3}
SAVED = [
    Case("dp2", 2, SAVE),
    Case("dp2-bf16", 2, {**SAVE, "precision.dtype": "bf16"}),
    Case("tp2", 2, {TP: 2, SP: "true", **SAVE}, "qwen3-moe"),
    Case("ep2", 2, {EP: 2, **SAVE}, "qwen3-moe"),
    Case("pp2-upper", 2, {PP: 2, **SAVE}, "qwen2-moe-upper"),  # the first stage has no experts
]
RESHARDED = "tp2"


def checkpoint_of(name: str, folder: Path) -> Path:
    return folder / "out" / name / "checkpoints" / "step_00000004"


def continued(saved: Case, name: str, checkpoint: Path, sizes: dict[str, object], ranks: int = 2) -> Case:
    kept = {key: value for key, value in saved.overrides.items() if key in ("precision.dtype", ROWS)}
    return Case(name, ranks, {**kept, **sizes, "checkpoint.load": checkpoint}, saved.model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own-layout")
    for kind in {case.model for case in SAVED}:
        models.make_model(kind, path / kind)
    models.write_rollouts(path / "rollouts.jsonl")
    again = [continued(case, f"{case.name}-again", checkpoint_of(case.name, path), case.overrides) for case in SAVED]
    run(path, "runs", [*SAVED, *again])
    return path


def run(folder: Path, name: str, cases: list[Case]) -> None:
    (folder / f"{name}.json").write_text(json.dumps([(case.name, case.arguments(folder)) for case in cases]))
    run_once(WORKER, folder / f"{name}.json", cases[0].world_size)


def compare(folder: Path, name: str, uninterrupted: str, tolerance: float) -> None:
    found, expected = steps(folder / "out" / name), steps(folder / "out" / uninterrupted)[4:]
    assert [line["step"] for line in found] == [line["step"] for line in expected] == [5, 6]
    for key in ("loss", "grad_norm"):
        values = [line[key] for line in expected]
        assert [line[key] for line in found] == pytest.approx(values, rel=tolerance, abs=tolerance), key
    weights = load_file(folder / "out" / uninterrupted / "hf" / "model.safetensors")
    for key, weight in load_file(folder / "out" / name / "hf" / "model.safetensors").items():
        assert torch.allclose(weight, weights[key], rtol=0, atol=tolerance), key


@pytest.mark.parametrize("saved", SAVED, ids=lambda case: case.name)
def test_the_same_layout_continues_bit_by_bit(saved: Case, folder: Path) -> None:
    description = json.loads((checkpoint_of(saved.name, folder) / "model.json").read_text())
    assert description["optimizer_sharding"] == "dp_reshardable"
    (last,) = (folder / "out" / saved.name / "checkpoints").glob("step_00000006")
    assert "optimizer_sharding" not in json.loads((last / "model.json").read_text())
    compare(folder, f"{saved.name}-again", saved.name, 0.0)


def test_one_rank_continues_what_two_data_parallel_ranks_saved(folder: Path) -> None:
    run(folder, "one", [continued(SAVED[0], "dp1", checkpoint_of("dp2", folder), {}, ranks=1)])
    compare(folder, "dp1", "dp2", 1e-5)


def test_another_layout_continues_after_resharding(folder: Path) -> None:
    source, output = checkpoint_of(RESHARDED, folder), folder / "resharded"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = processes.run(
        [*torchrun, "-m", "sppo_megatron.cli.reshard", str(source), "--output", str(output)],
        300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    saved = next(case for case in SAVED if case.name == RESHARDED)
    run(folder, "resharded-runs", [continued(saved, "resharded-pp2", output / source.name, {PP: 2})])
    compare(folder, "resharded-pp2", RESHARDED, 1e-5)


def test_another_layout_is_refused_with_the_command(folder: Path) -> None:
    saved = next(case for case in SAVED if case.name == RESHARDED)
    case = continued(saved, "refused", checkpoint_of(RESHARDED, folder), {PP: 2})
    shutil.rmtree(folder / "out" / "refused", ignore_errors=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = processes.run(
        [*torchrun, "-m", "sppo_megatron.train", *case.arguments(folder)],
        300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("configuration error: ")]
    assert len(said) == 1 and "TP 2 PP 1" in said[0] and "TP 1 PP 2" in said[0], done.stderr[-3000:]
    assert f"sppo_megatron.cli.reshard {checkpoint_of(RESHARDED, folder)}" in said[0]
