"""The layers that a GPU runs, in layouts, against the plain definition: Transformer Engine's modules, which fuse norms
and linear layers, group experts and add weight gradients to `main_grad`, its attention, and its fused Adam.

All of it is the real Python of Transformer Engine and of Megatron-Core. What is compiled for CUDA underneath, products,
norms, roundings to FP8 and the update, is stood in for by plain torch: the folder stand_in. Context parallelism, and
FP8 with scales for blocks, need more of the compiled part than that.
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

from tests.distributed.generation import test_generation
from tests.distributed.layouts import models, reference
from tests.distributed.layouts.cases import CASES, Case
from tests.distributed.layouts.comparison import assert_checkpoints_convert, assert_trained_as
from tests.distributed.torchrun import ROOT, run_once

HERE = Path(__file__).parent
FOLDER = Path(os.environ.get("SPPO_TRANSFORMER_ENGINE_FOLDER", ROOT / ".transformer_engine"))
NAMES = [
    *("one-process", "one-process-packed", "one-process-plain-adam", "one-process-full-recompute"),
    *("one-process-qwen3", "one-process-mixtral", "one-process-balanced-packed"),
    *("one-process-shared-unfused", "one-process-shared-gemma3", "one-process-shared-deepseek-v3", "tp2-sp-shared"),
    *("tp2-sp-packed", "tp2-sp-few-logits", "tp2-unfused", "pp2-vpp2", "dp2-overlapped"),
    *("ep2-qwen2-moe-packed", "tp2-sp-ep2-etp1-qwen3-moe", "pp2-vpp2-qwen2-moe"),
]
CHOSEN = [case for case in CASES if case.name in NAMES]

pytestmark = [
    pytest.mark.skipif(
        not (FOLDER / "transformer_engine").is_dir(),
        reason="Transformer Engine's sources are not there: pip install --no-deps --target .transformer_engine "
        "-r requirements/transformer-engine.txt",
    ),
    pytest.mark.skipif(torch.cuda.is_available(), reason="about a CPU: set CUDA_VISIBLE_DEVICES="),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("transformer-engine")
    for kind in {case.model for case in CHOSEN}:
        models.make_model(kind, path / kind)
    models.write_rollouts(path / "rollouts.jsonl")
    return path


def output_of(case: Case, folder: Path) -> Path:
    """All cases of a world size run when the first is asked for."""
    todo = folder / f"runs-{case.world_size}.json"
    runs = [(other.name, other.arguments(folder)) for other in CHOSEN if other.world_size == case.world_size]
    todo.write_text(json.dumps(runs))
    run_once(HERE / "worker.py", todo, case.world_size, HERE / "stand_in", FOLDER)
    return folder / "out" / case.name


@cache
def expected(folder: Path, model: str, settings: reference.Settings) -> reference.Result:
    return reference.train(folder / model, folder / "rollouts.jsonl", settings)


def test_every_case_is_known() -> None:
    assert {case.name for case in CHOSEN} == set(NAMES)


@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.name)
def test_equals_the_plain_definition(case: Case, folder: Path) -> None:
    assert_trained_as(expected(folder, case.model, case.settings), output_of(case, folder))


GENERATED = ("tp2-sp", "pp2-vpp2", "ep2-mixtral")


@pytest.mark.parametrize("name", GENERATED)
def test_responses_have_the_log_probs_of_plain_transformers(name: str, folder: Path) -> None:
    """Its attention with a key-value cache, which samples token by token."""
    path = folder / "generation"
    if not path.exists():
        test_generation.prepare(path, {test_generation.LAYOUTS[name][1] for name in GENERATED})
        runs = [(name, test_generation.overrides(name, path)) for name in GENERATED]
        (path / "runs.json").write_text(json.dumps(runs))
    run_once(HERE / "worker.py", path / "runs.json", 2, HERE / "stand_in", FOLDER)
    groups = test_generation.read_groups(path / "out" / name)
    test_generation.assert_log_probs_of(path / test_generation.LAYOUTS[name][1], groups)


def test_what_is_tested_on_a_gpu_in_bf16_fp16_and_fp8() -> None:
    """The same tests, with the recipes that scale whole tensors; what scales blocks of them isn't stood in for."""
    choice = "(learns or differs) and not blockwise and not mxfp8 and not fp32"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/gpu/test_training.py", "-k", choice],
        cwd=ROOT,
        env=os.environ
        | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(map(str, (HERE / "stand_in", FOLDER, ROOT))),
            "SPPO_KERNELS_STOOD_IN": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "10 passed" in done.stdout and " skipped" not in done.stdout, done.stdout[-2000:]


def test_its_checkpoints_convert_where_it_is_not_installed(folder: Path) -> None:
    """Its names of fused norms and grouped experts are those of a GPU's checkpoint, read here without it."""
    cases = [case for case in CHOSEN if case.name in ("pp2-vpp2", "ep2-qwen2-moe-packed")]
    starts = {case.name: folder / case.model for case in cases}
    assert_checkpoints_convert(folder, {case.name: output_of(case, folder) for case in cases}, starts)
