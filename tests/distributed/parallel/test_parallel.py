"""Every case of worker.py at 1, 2 and 4 ranks: one set of processes a number of ranks, one test a case."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

from tests.forked import processes

WORKER = Path(__file__).with_name("worker.py")
ROOT = Path(__file__).parents[3]


def case_names() -> list[str]:
    spec = importlib.util.spec_from_file_location("parallel_worker", WORKER)
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    return list(worker.cases())


@pytest.fixture(scope="module", params=[1, 2, 4], ids=lambda size: f"{size}-ranks")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    path = tmp_path_factory.mktemp("parallel") / "results.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={request.param}"]
    python_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": python_path}
    done = processes.run([*command, str(WORKER), str(path)], 300, env=environment)
    assert done.returncode == 0, f"{request.param} ranks ended with {done.returncode}:\n{done.stderr[-4000:]}"
    return json.loads(path.read_text())


@pytest.mark.parametrize("case", case_names())
def test_case(results: dict[str, list[str]], case: str) -> None:
    assert case in results, f"{case} did not run"
    assert results[case] == [], f"{case}: " + "; ".join(results[case])
