"""Hugging Face -> Megatron in every layout -> Hugging Face: the same bytes, and logits those of plain transformers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.distributed.conversion import models
from tests.distributed.conversion.cases import CASES, DENSE, MIXTURES, TEXT_PARTS, Case
from tests.distributed.conversion.command_lines import run_command_lines
from tests.distributed.conversion.tokens import tokens
from tests.distributed.layouts.models import BIASED_EXPERTS, load_model
from tests.distributed.torchrun import run_once

HERE = Path(__file__).parent
MODELS = DENSE + MIXTURES + TEXT_PARTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("conversion")
    for kind in MODELS:
        models.make_model(kind, path / "hf" / kind)
    for kind in MIXTURES:
        models.make_model(kind, path / "hf" / f"{kind}-fused", fused_experts=True)
    differing = load_file(path / "hf" / "qwen3" / "model.safetensors")
    (path / "hf" / "altered").mkdir()
    (path / "hf" / "altered" / "config.json").write_text((path / "hf" / "qwen3" / "config.json").read_text())
    differing["model.layers.2.mlp.down_proj.weight"][3, 5] += 1e-3
    save_file(differing, path / "hf" / "altered" / "model.safetensors", metadata={"format": "pt"})
    return path


def command_lines(folder: Path) -> dict[str, list[str]]:
    hf, megatron, back = folder / "hf", folder / "megatron", folder / "back"
    layout = ["--tensor-model-parallel-size", "2", "--make-vocab-size-divisible-by", "4"]
    stages = ["--pipeline-model-parallel-size", "2", "--virtual-pipeline-model-parallel-size", "2"]
    lines: dict[str, list[str]] = {}
    for kind in MODELS:
        to = ["--hf-path", hf / kind, "--output", megatron / kind]
        whole = ["--expert-tensor-parallel-size", "1"] if kind in BIASED_EXPERTS else []
        lines[f"to-megatron {kind}"] = ["convert", "--to", "megatron", *to, *layout, *whole]
        lines[f"to-hf {kind}"] = [
            "convert", "--to", "hf", "--megatron-path", megatron / kind, "--output", back / kind,
        ]  # fmt: skip
        lines[f"verify {kind}"] = ["verify", "--hf-path", hf / kind, "--megatron-path", megatron / kind]
    for kind in MIXTURES:
        fused, to = hf / f"{kind}-fused", megatron / kind
        lines[f"verify fused {kind}"] = [
            "verify",
            "--hf-path",
            fused,
            "--megatron-path",
            to,
            "--skip-logits",
        ]
    lines |= {
        "dry run": ["convert", "--to", "megatron", "--hf-path", hf / "mixtral", "--output", folder / "nothing",
                    "--dry-run", *layout, *stages, "--expert-model-parallel-size", "2"],
        "exists": ["convert", "--to", "megatron", "--hf-path", hf / "qwen3", "--output", megatron / "qwen3", *layout],
        "overwrite": ["convert", "--to", "megatron", "--hf-path", hf / "qwen3", "--output", megatron / "qwen3",
                      "--overwrite", *layout],
        "altered": ["verify", "--hf-path", hf / "altered", "--megatron-path", megatron / "qwen3"],
        "tolerance": ["verify", "--hf-path", hf / "qwen3", "--megatron-path", megatron / "qwen3",
                      "--tolerance", "0", "--token-ids", "3,1,4,1,5,9,2,6"],
        "other model": ["convert", "--to", "hf", "--megatron-path", megatron / "qwen2-tied", "--hf-path", hf / "qwen3",
                        "--output", folder / "nothing"],
        "no checkpoint": ["convert", "--to", "hf", "--megatron-path", hf / "qwen3", "--hf-path", hf / "qwen3",
                          "--output", folder / "nothing"],
        "bad layout": ["convert", "--to", "megatron", "--hf-path", hf / "mixtral", "--output", folder / "nothing",
                       "--expert-model-parallel-size", "3"],
    }  # fmt: skip
    return {name: [str(part) for part in line] for name, line in lines.items()}


@pytest.fixture(scope="module")
def commands(folder: Path) -> dict[str, list]:
    """Of each command line: exit code, standard output, standard error."""
    return run_command_lines(folder, command_lines(folder))


@pytest.fixture(scope="module")
def output_of(folder: Path, commands) -> Callable[[Case], Path]:
    """The folder of a case; all cases of a world size run when the first is asked for."""

    def of(case: Case) -> Path:
        run_once(HERE / "worker.py", folder, case.world_size)
        return folder / "out" / case.name

    return of


def same_bytes(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


@cache
def reference(path: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    model = load_model(path).eval()
    with torch.no_grad():
        return load_file(path / "model.safetensors"), model(tokens()).logits


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_there_and_back(case: Case, folder: Path, output_of) -> None:
    output = output_of(case)
    weights, logits = reference(folder / "hf" / case.model)
    if case.model in TEXT_PARTS:  # what sees is no part of the policy
        weights = {name: tensor for name, tensor in weights.items() if name.startswith("language_model.")}
    assert same_bytes(load_file(output / "direct.safetensors"), weights)
    assert same_bytes(load_file(output / "stored.safetensors"), weights)
    found = torch.load(output / "logits.pt")
    assert found.shape == logits.shape
    assert (found - logits).abs().max() <= 1e-5 * logits.abs().max()


@pytest.mark.parametrize("kind", MODELS)
def test_the_commands_there_and_back(kind: str, folder: Path, commands) -> None:
    for command in ("to-megatron", "to-hf"):
        assert commands[f"{command} {kind}"][0] == 0, commands[f"{command} {kind}"]
    weights, logits = reference(folder / "hf" / kind)
    back = folder / "back" / kind
    assert same_bytes(load_file(back / "model.safetensors"), weights)
    model, info = load_model(back, output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        assert torch.equal(model.eval()(tokens()).logits, logits)


@pytest.mark.parametrize("kind", MODELS)
def test_verify_agrees(kind: str, commands) -> None:
    code, output, errors = commands[f"verify {kind}"]
    assert code == 0, output + errors
    assert "tensors by checksum" in output and "logits of 32 tokens" in output


@pytest.mark.parametrize("kind", MIXTURES)
def test_fused_experts_are_the_same_model(kind: str, folder: Path, commands) -> None:
    stored = load_file(folder / "hf" / f"{kind}-fused" / "model.safetensors")
    assert "model.layers.3.mlp.experts.gate_up_proj" in stored
    code, output, errors = commands[f"verify fused {kind}"]
    assert code == 0, output + errors


def test_a_dry_run_names_every_tensor_and_writes_nothing(folder: Path, commands) -> None:
    code, output, _ = commands["dry run"]
    assert code == 0
    for name in load_file(folder / "hf" / "mixtral" / "model.safetensors"):
        assert name in output
    row = next(line for line in output.splitlines() if "layers.3.block_sparse_moe.experts.2.w2" in line)
    # [hidden, ffn] on two tensor-parallel ranks; chunks of one layer go round two stages; experts 2 and 3 on rank 1
    assert [cell.strip() for cell in row.split("│")[2:-1]] == [
        "32×48", "decoder.layers.3.mlp.experts.local_experts.2.linear_fc2.weight", "RowParallel", "32×24", "1", "1",
    ]  # fmt: skip
    assert not (folder / "nothing").exists()


def test_nothing_is_overwritten_unasked(commands) -> None:
    code, _, errors = commands["exists"]
    assert code == 2 and "--overwrite" in errors
    assert commands["overwrite"][0] == 0


def test_verify_names_the_tensor_that_differs(commands) -> None:
    code, output, _ = commands["altered"]
    assert code == 1
    assert "DIFFERENT model.layers.2.mlp.down_proj.weight" in output and "1 differences" in output


def test_verify_compares_logits(commands) -> None:
    """In floating point two programs differ a little: a tolerance of 0 can't be met."""
    code, output, _ = commands["tolerance"]
    assert code == 1 and "DIFFERENT logits" in output and "logits of 8 tokens" in output


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other model", "decoder.layers.self_attention.q_layernorm.weight is missing"),
        ("no checkpoint", "is no checkpoint of Megatron-Core's torch_dist format"),
        ("bad layout", "does not divide the model's 4 experts"),
    ],
)
def test_what_does_not_fit_is_said(name: str, message: str, folder: Path, commands) -> None:
    code, _, errors = commands[name]
    assert code == 2 and message in errors
    assert "Traceback" not in errors
    assert not (folder / "nothing").exists() and not list(folder.glob("nothing*"))
