"""Drivers and GPUs, as far as a machine without them can tell. tests/gpu looks at a real one."""

from __future__ import annotations

import pytest
import torch

from sppo_doctor.devices import check_devices, driver_version

DRIVER_FILE = """NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.124.06  Wed Feb 26 01:58:37 UTC 2025
GCC version:  gcc version 12.3.0
"""
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without CUDA")


def test_driver_version(tmp_path):
    path = tmp_path / "version"
    assert driver_version(path) is None
    path.write_text(DRIVER_FILE)
    assert driver_version(path) == "570.124.06"
    path.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  575.57\n")
    assert driver_version(path) == "575.57"


@without_cuda
def test_no_gpu_is_no_problem():
    (finding,) = check_devices(None)
    assert finding.status == "note" and "CPU" in finding.text


@without_cuda
@pytest.mark.skipif(torch.version.cuda is not None, reason="about builds of torch without CUDA")
def test_a_torch_without_cuda_beside_a_driver_is_one():
    (finding,) = check_devices("570.124.06")
    assert finding.status == "problem"
    assert "570.124.06" in finding.text and "without CUDA" in finding.text
    assert finding.fix == "install the CUDA build of this torch"


@without_cuda
def test_a_driver_that_torch_can_not_use(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (finding,) = check_devices("470.1")
    assert finding.status == "problem"
    assert "torch for CUDA 13.0 can't use the driver 470.1: " in finding.text  # and then torch's own reason
    assert "update the driver" in finding.fix
