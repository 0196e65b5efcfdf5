"""A run of the real command against the plain definition's losses, gradient norms and weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.conversion.command_lines import run_command_lines
from tests.distributed.layouts import models as tiny_models
from tests.distributed.layouts.reference import Result

TOLERANCE = 3e-4  # relative, fp32


def assert_trained_as(want: Result, output: Path) -> None:
    """output: the folder of a run that made want's steps, with its model in hf/."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(want.losses) + 1))
    assert [line["loss"] for line in lines] == pytest.approx(want.losses, rel=TOLERANCE)
    assert [line["grad_norm"] for line in lines] == pytest.approx(want.grad_norms, rel=TOLERANCE)
    found = [line["moe_aux_loss"] for line in lines if "moe_aux_loss" in line]
    assert found == pytest.approx(want.aux_losses, rel=TOLERANCE)

    model, info = tiny_models.load_model(output / "hf", output_loading_info=True)
    assert not any(info.values()), info
    final = model.state_dict()
    assert final.keys() == want.final.keys()
    for name, weight in final.items():
        # relative to the update, not to the weight: a run that learned nothing would pass the latter
        update = (want.final[name] - want.start[name]).norm()
        if update == 0:  # a bias of the experts' choice
            assert torch.equal(weight, want.final[name]), name
            continue
        error = (weight - want.final[name]).norm() / update
        assert error <= 10 * TOLERANCE, f"{name}: error {error:.1e} of the update"
        assert torch.allclose(weight, want.final[name], rtol=TOLERANCE, atol=TOLERANCE * float(weight.abs().max()))


def assert_checkpoints_convert(folder: Path, outputs: Mapping[str, Path], models: Mapping[str, Path]) -> None:
    """The training checkpoint of each run becomes the same bytes as its own export. models: what it started from."""
    command_lines = {}
    for name, output in outputs.items():
        (checkpoint,) = (output / "checkpoints").glob("step_*/megatron")
        source = ["--megatron-path", checkpoint, "--hf-path", models[name]]
        command_lines[name] = ["convert", "--to", "hf", *source, "--output", folder / "converted" / name]
    results = run_command_lines(folder, command_lines)
    for name, output in outputs.items():
        assert results[name][0] == 0, results[name]
        own = load_file(output / "hf" / "model.safetensors")
        converted = load_file(folder / "converted" / name / "model.safetensors")
        assert own.keys() == converted.keys()
        assert all(torch.equal(own[key], converted[key]) for key in own)
