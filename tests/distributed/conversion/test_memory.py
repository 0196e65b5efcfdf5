"""Conversion holds a few tensors at a time, not the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_peak_memory_is_a_few_tensors(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "memory.py"), str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads(done.stdout.splitlines()[-1])
    print(results)
    assert results["model"] > 24 * results["largest"]
    for step in ("to_megatron", "to_hf", "load"):
        assert results[step] < 8 * results["largest"], f"{step}: {results}"
