"""The doctor's command on this machine as it is, and with broken packages on the path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.integration import tiny_task

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="what it says here is about a machine without CUDA")


def doctor(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess:
    environment = tiny_task.environment()
    if path is not None:
        environment["PYTHONPATH"] = f"{path}{os.pathsep}{environment['PYTHONPATH']}"
    command = [sys.executable, "-m", "sppo_megatron.cli.main", "doctor", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


def findings(done: subprocess.CompletedProcess) -> dict[str, dict]:
    assert done.stdout, done.stderr
    return {finding["subject"]: finding for finding in json.loads(done.stdout)["findings"]}


def test_a_healthy_set_up():
    done = doctor()
    assert done.returncode == 0, done.stdout + done.stderr
    for text in (torch.__version__, "megatron-core", "none: everything runs on CPU and gloo", "0 problems"):
        assert text in done.stdout


def test_a_broken_set_up(tmp_path):
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text(
        "from pyramid.session import UnencryptedCookieSessionFactoryConfig\n"
    )
    (tmp_path / "vllm.py").write_text("")
    metadata = tmp_path / "vllm-0.1.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.1.0\nRequires-Dist: torch==1.13.1\n")
    done = doctor("precision=fp8_blockwise", "rollout.engine=vllm", "--json", path=tmp_path)
    assert done.returncode == 1
    found = findings(done)
    assert {subject for subject, finding in found.items() if finding["status"] == "problem"} == {
        "vllm",
        "precision.fp8_recipe=blockwise",
    }
    assert f"made for torch==1.13.1, and {torch.__version__} is installed" in found["vllm"]["text"]
    assert "sppo-megatron[gpu]" in found["precision.fp8_recipe=blockwise"]["text"]
    assert found["apex"]["status"] == "warning" and "not NVIDIA's" in found["apex"]["text"]
    assert found["megatron-core"]["status"] == "ok"  # the wrong apex on the path doesn't keep it from working
