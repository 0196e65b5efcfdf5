"""The doctor on a machine with a GPU."""

from __future__ import annotations

import json

import pytest
import torch

from sppo_doctor.command import main
from sppo_doctor.devices import check_devices, driver_version

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_every_gpu_is_examined():
    found = {finding.subject: finding for finding in check_devices(driver_version())}
    for index in range(torch.cuda.device_count()):
        finding = found[f"GPU {index}"]
        assert finding.status in ("ok", "warning"), finding.text
        assert torch.cuda.get_device_name(index) in finding.text and "FP8" in finding.text
    assert found["driver"].status == "ok" and found["NCCL"].status == "ok"


def test_the_command(capsys):
    code = main(["--json", "precision=bf16"])
    found = {finding["subject"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert code == any(finding["status"] == "problem" for finding in found.values())
    assert found["torch"]["status"] == "ok" and found["megatron-core"]["status"] == "ok"
    assert found["log-probs"]["text"].startswith("Triton") == (found["triton"]["status"] == "ok")
