"""Families that only megatron-bridge maps, by the real Bridge: the same bytes in and out, logits of plain transformers,
and training that follows the plain definition.

The Bridge lies in a folder of its own (requirements/megatron-bridge.txt), on the path of these processes only. It
imports Transformer Engine, which the folder stand_in stands in for: nothing of it is called, since the layers are
torch's here.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.distributed.bridge import models
from tests.distributed.conversion.command_lines import run_command_lines
from tests.distributed.conversion.tokens import tokens
from tests.distributed.layouts import reference
from tests.distributed.layouts.cases import PP, SP, TP, Case
from tests.distributed.layouts.comparison import assert_trained_as
from tests.distributed.layouts.models import write_rollouts
from tests.distributed.torchrun import ROOT, run_once

HERE = Path(__file__).parent
FOLDER = Path(os.environ.get("SPPO_BRIDGE_FOLDER", ROOT / ".bridge"))
PYTHON_PATH = (HERE / "stand_in", FOLDER)
LAYOUTS = ("dp2", "tp2", "pp2-vpp2")
TP2 = {TP: 2, SP: "true"}
SETTINGS = reference.Settings(minibatch_size=6)
CASES = [
    Case("gemma-tp2", 2, TP2, "gemma", SETTINGS),
    Case("gemma-pp2", 2, {PP: 2}, "gemma", SETTINGS),
    Case("nemotron-tp2", 2, TP2, "nemotron", SETTINGS),
]

pytestmark = pytest.mark.skipif(
    not (FOLDER / "megatron" / "bridge").is_dir(),
    reason="megatron-bridge is not installed: pip install --no-deps --ignore-requires-python --target .bridge "
    "-r requirements/megatron-bridge.txt",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bridge")
    for kind in models.CONFIGS:
        models.make_model(kind, path / kind)
    models.make_refused(path)
    write_rollouts(path / "rollouts.jsonl")
    (path / "runs.json").write_text(json.dumps([case.arguments(path) for case in CASES]))
    return path


@pytest.fixture
def done(folder: Path) -> Path:
    run_once(HERE / "worker.py", folder, 2, *PYTHON_PATH)
    return folder


@cache
def plain(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", models.CONFIGS)
def test_weights_come_back_bitwise_and_logits_agree(kind: str, layout: str, done: Path) -> None:
    converted = done / "converted" / f"{kind}-{layout}"
    exported, stored = (load_file(path / "model.safetensors") for path in (converted, done / kind))
    assert exported.keys() == stored.keys()
    assert all(torch.equal(exported[name], stored[name]) for name in stored)
    with torch.no_grad():
        expected = plain(done / kind)(tokens()).logits
    assert torch.allclose(torch.load(converted / "logits.pt"), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", models.REFUSED)
def test_what_cannot_be_had_is_refused_with_one_message(name: str, done: Path) -> None:
    message = json.loads((done / "refused.json").read_text())[name]
    assert models.REFUSED[name] in message and "\n" not in message


@cache
def expected(folder: Path, kind: str) -> reference.Result:
    return reference.train(folder / kind, folder / "rollouts.jsonl", SETTINGS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_training_equals_the_plain_definition(case: Case, done: Path) -> None:
    want = expected(done, case.model)
    assert len(want.losses) == 4
    assert_trained_as(want, done / "out" / case.name)


def test_the_converters(done: Path) -> None:
    """To Megatron and back, and from the checkpoint of a training run; tables are for our own families."""
    start, (checkpoint,) = done / "gemma", (done / "out" / "gemma-tp2" / "checkpoints").glob("step_*/megatron")
    to = ["convert", "--to", "megatron", "--hf-path", start, "--output", done / "megatron"]
    command_lines = {
        "there": to,
        "back": ["convert", "--to", "hf", "--megatron-path", done / "megatron", "--output", done / "back"],
        "trained": ["convert", "--to", "hf", "--megatron-path", checkpoint, "--hf-path", start,
                    "--output", done / "trained"],
        "table": [*to, "--overwrite", "--dry-run"],
    }  # fmt: skip
    results = run_command_lines(done, command_lines, *PYTHON_PATH)
    assert [results[name][0] for name in ("there", "back", "trained")] == [0, 0, 0], results
    for ours, theirs in (("back", start), ("trained", done / "out" / "gemma-tp2" / "hf")):
        converted, expected = (load_file(path / "model.safetensors") for path in (done / ours, theirs))
        assert converted.keys() == expected.keys()
        assert all(torch.equal(converted[name], expected[name]) for name in expected)
    code, _, message = results["table"]
    assert code == 2 and "'gemma' is not supported; supported are llama" in message
