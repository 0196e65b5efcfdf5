"""The benchmarks run, on one rank and on two, and write what tools/README.md says."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

from tests.distributed.layouts import models
from tests.forked import processes
from tests.integration import tiny_task

ROOT = Path(__file__).parents[2]
LOG_PROBS = ["sppo_benchmarks.log_probs", "--tokens", "64", "--vocab", "512", "--hidden", "64", "--rounds", "1"]
STEP = [
    *("sppo_benchmarks.train_step", "--hidden", "128", "--layers", "2", "--vocab", "512", "--tokens", "64"),
    *("--sequence-length", "16", "--rounds", "1"),
]


def run(arguments: list[str], ranks: int, path: Path) -> dict:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    done = processes.run(
        [sys.executable, *launcher, "-m", *arguments, "--json", str(path)],
        300,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(path.read_text())


@pytest.mark.parametrize("ranks", [1, 2])
def test_log_probs(tmp_path, ranks):
    result = run([*LOG_PROBS, "--dtype", "fp32", "bf16"], ranks, tmp_path / "out.json")
    assert result["machine"]["ranks"] == ranks and len(result["results"]) == 2
    for case in result["results"]:
        rows = {row["variant"]: row for row in case["rows"]}
        names = {"3G", "4G", "ours", "mcore", "mcore fused", "ours, half masked", "ours, sppo loss"}
        assert names <= rows.keys()
        assert ("F.cross_entropy" in rows) == (ranks == 1)
        assert rows["ours"]["max error"] <= 1e-5
        assert rows["mcore"]["/mcore"] == 1.0 and rows["ours"]["/4G"] == rows["ours"]["ms"] / rows["4G"]["ms"]


def test_checkpoints(tmp_path):
    sizes = ["--hidden", "64", "--layers", "1", "--vocab", "128", "--rounds", "1", "--folder", str(tmp_path)]
    rows = run(["sppo_benchmarks.checkpoints", *sizes], 2, tmp_path / "out.json")["rows"]
    assert [(row["checkpoint"], row["work"]) for row in rows] == [
        (name, work) for name in ("every layout", "its own layout") for work in ("save", "load")
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_shared_prompts(tmp_path):
    sizes = ["--hidden", "64", "--layers", "1", "--vocab", "128", "--rounds", "1"]
    rows = run(["sppo_benchmarks.shared_prompts", "--shapes", "32,4,3", *sizes], 1, tmp_path / "out.json")["rows"]
    assert [row["work"] for row in rows] == ["log-probs", "step"]
    assert rows[0]["tokens ratio"] == 3 * 36 / 44
    assert rows[1]["loss difference"] < 1e-5


def test_plain_step(tmp_path):
    """The plain loop computes what ours computes: it is what the figures are compared with."""
    models.make_model("qwen2-tied", tmp_path / "model")
    sizes = ["--prompts", "2", "--samples", "3", "--prompt", "5", "--response", "4", "--tokens", "20", "--rounds", "1"]
    command = ["sppo_benchmarks.plain_step", "--model", str(tmp_path / "model"), "--dtype", "fp32", *sizes]
    rows = run(command, 1, tmp_path / "out.json")["rows"]
    assert [row["work"] for row in rows] == ["log-probs"] * 3 + ["step"] * 3
    losses = [row["loss"] for row in rows[3:]]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5) and losses[0] > 1


@pytest.mark.parametrize("ranks", [1, 2])
def test_train_step(tmp_path, ranks):
    extra = ["--sequence-parallel", "--tied"] if ranks == 2 else ["--clock", "process"]
    rows = run([*STEP, *extra], ranks, tmp_path / "out.json")["rows"]
    assert [row["head"] for row in rows] == ["megatron", "ours, log-probs", "ours, sppo loss"]
    assert rows[1]["loss"] == pytest.approx(rows[0]["loss"], rel=1e-5)
    assert rows[2]["loss"] == pytest.approx(rows[0]["loss"], rel=1e-5)
    # 8 sequences: 16 tokens are fed, 13 predicted; a layer has 4h² + 9h² weights
    h, tokens = 128, 8 * 16
    forward = 2 * (26 * h * h * tokens + 4 * h * 8 * 16**2 / 2) + 2 * h * 512 * 8 * 13
    for row in rows:
        assert row["GFLOP/s"] * row["s/step"] == pytest.approx(3 * forward / ranks / 1e9)


def test_host(tmp_path):
    """Every row at two sizes: what a small one takes says nothing, but that it is measured."""
    result = run(["sppo_benchmarks.host", "--tokens", "20000", "40000", "--rounds", "1"], 1, tmp_path / "out.json")
    rows = {row["row"]: row for row in result["rows"]}
    assert {"mismatch gate", "rollout file written", "packing, 64 ranks"} <= set(rows)
    assert all(row["s/M"] > 0 and row["exponent"] is not None for row in rows.values())
    assert rows["rollout file written"]["bytes/token"] > 4


def test_rooms(tmp_path):
    """130 moves are there; what called from room to room once for each of the 24 responses would add 48."""
    overrides = tiny_task.overrides(tiny_task.make_task(tmp_path), tmp_path / "run", **{"train.iterations": 1})
    command = [sys.executable, "-m", "sppo_benchmarks.rooms", *overrides]
    done = processes.run(command, 300, env=tiny_task.environment())
    assert done.returncode == 0, done.stderr[-4000:]
    counts = {line.split()[0]: [int(n) for n in re.findall(r"\d+", line)] for line in done.stdout.splitlines()[-4:]}
    assert counts.keys() == {"_prepare", "_train_step", "_push", "iteration"}
    assert all(0 < on_cuda <= moves for _, moves, _, on_cuda in counts.values())
    assert sum(moves for _, moves, *_ in counts.values()) == 2 * counts["iteration"][1]
    assert counts["iteration"][3] < 140
