"""When kernels are used, without Triton and without a GPU."""

from __future__ import annotations

import pytest
import torch

from sppo_megatron.parallel import kernels

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(kernels, "_installed", lambda: True)
    monkeypatch.setattr(kernels, "_load", lambda: "the kernels")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return monkeypatch


def test_automatic_choice(installed):
    assert kernels.select_kernels("auto", CUDA, torch.float32) == "the kernels"
    assert kernels.select_kernels("auto", CUDA, torch.float64) is None
    assert kernels.select_kernels("auto", CPU, torch.float32) is None
    installed.setattr(kernels, "_installed", lambda: False)
    assert kernels.select_kernels("auto", CUDA, torch.float32) is None


def test_off(installed):
    assert kernels.select_kernels("torch", CUDA, torch.float32) is None


def test_asked_for(installed):
    assert kernels.select_kernels("triton", CUDA, torch.float32) == "the kernels"
    with pytest.raises(ValueError, match=r"can't run torch\.float32 on cpu"):
        kernels.select_kernels("triton", CPU, torch.float32)
    with pytest.raises(ValueError, match=r"can't run torch\.float64 on cuda"):
        kernels.select_kernels("triton", CUDA, torch.float64)
    installed.setenv("TRITON_INTERPRET", "1")
    assert kernels.select_kernels("triton", CPU, torch.float32) == "the kernels"
    installed.setattr(kernels, "_installed", lambda: False)
    with pytest.raises(ValueError, match="pip install triton"):
        kernels.select_kernels("triton", CUDA, torch.float32)


def test_unknown():
    with pytest.raises(ValueError, match="choose one of auto, torch, triton"):
        kernels.select_kernels("cuda", CPU, torch.float32)
