"""Which kernels are found, with folders on the path that hold what the packages hold."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

from sppo_megatron.parallel import fused_kernels


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts empty modules where they can be imported from; CUDA is as asked for."""
    monkeypatch.syspath_prepend(tmp_path)

    def modules(*names: str, cuda: bool = True) -> None:
        for name in names:
            (tmp_path / f"{name}.py").touch()
        importlib.invalidate_caches()
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)

    return modules


def test_the_apex_of_pypi_is_not_nvidias(place):
    place("apex")
    assert not fused_kernels.has_apex()
    assert not fused_kernels.has_apex_weight_gradient()


def test_nvidias_apex_is_known_by_its_compiled_modules(place):
    place("apex", "amp_C", "fused_weight_gradient_mlp_cuda")
    assert fused_kernels.has_apex()
    assert fused_kernels.has_apex_weight_gradient()


def test_an_apex_with_some_of_its_extensions(place):
    place("apex", "amp_C")
    assert fused_kernels.has_apex()
    assert not fused_kernels.has_apex_weight_gradient()


def test_nothing_is_used_without_cuda(place):
    place("apex", "amp_C", "fused_weight_gradient_mlp_cuda", "transformer_engine", cuda=False)
    assert not fused_kernels.has_apex()
    assert not fused_kernels.has_apex_weight_gradient()
    assert not fused_kernels.has_transformer_engine()


def test_transformer_engine_is_found_and_not_imported(place):
    place("transformer_engine")
    assert fused_kernels.has_transformer_engine()
    assert "transformer_engine" not in sys.modules


@pytest.mark.parametrize(("version", "expected"), [("13.0", (13, 0)), ("12.9", (12, 9)), (None, (0, 0))])
def test_cuda_version(version, expected, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", version)
    assert fused_kernels.cuda_version() == expected
