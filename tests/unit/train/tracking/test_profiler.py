"""The profiler on real operators: which steps it records, on which ranks, and that what it has is never lost."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pytest
import torch

from sppo_megatron.config import Config, ProfilerConfig
from sppo_megatron.config.profiler import check_profiler
from sppo_megatron.errors import ConfigError
from sppo_megatron.train.tracking.profiler import Profiler


def run(profiler: Profiler, steps: range) -> None:
    for step in steps:
        with profiler.step(step):
            torch.ones(3, 3) @ torch.ones(3, 3)
    profiler.close()


def steps_in(folder: Path) -> list[str]:
    [trace] = (folder / "profile").glob("*.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    return sorted({event["name"] for event in events if str(event.get("name")).startswith("optimizer step")})


@pytest.mark.parametrize(
    ("run_steps", "recorded"),
    [(range(1, 9), (3, 4, 5)), (range(4, 9), (4, 5)), (range(1, 5), (3, 4))],
    ids=["whole", "continued behind the first", "ends before the last"],
)
def test_the_steps_that_are_recorded(run_steps: range, recorded: tuple[int, ...], tmp_path: Path):
    run(Profiler(ProfilerConfig(steps=[3, 5]), tmp_path, rank=0), run_steps)
    assert steps_in(tmp_path) == [f"optimizer step {step}" for step in recorded]


@pytest.mark.parametrize(
    ("config", "steps"),
    [(ProfilerConfig(), range(1, 9)), (ProfilerConfig(steps=[3, 5], ranks=[1]), range(1, 9))],
    ids=["off", "another rank"],
)
def test_nothing_is_written(config: ProfilerConfig, steps: range, tmp_path: Path):
    run(Profiler(config, tmp_path, rank=0), steps)
    assert not list(tmp_path.iterdir())


def test_a_run_that_continues_behind_the_last_step_records_nothing(tmp_path: Path):
    run(Profiler(ProfilerConfig(steps=[3, 5]), tmp_path, rank=0), range(6, 9))
    assert not list(tmp_path.iterdir())


def test_stacks_and_memory(tmp_path: Path):
    run(Profiler(ProfilerConfig(steps=[1, 1], stacks=True, memory=True), tmp_path, rank=2), range(1, 3))
    [trace] = (tmp_path / "profile").glob("*.json.gz")
    assert trace.name == "rank_0002_steps_1-1.json.gz"
    text = gzip.decompress(trace.read_bytes()).decode()
    assert "[memory]" in text and "test_profiler.py" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_nsight_needs_cuda(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"profiler\.nsys"):
        Profiler(ProfilerConfig(steps=[1, 1], nsys=True), tmp_path, rank=0)


@pytest.mark.parametrize("steps", [[3], [5, 3], [0, 2], [1, 2, 3], []])
def test_steps_that_are_none(steps: list[int]):
    [problem] = check_profiler(ProfilerConfig(steps=steps))
    assert "profiler.steps=[3,5]" in problem
    assert not list(check_profiler(Config().profiler))


def test_what_lies_between_the_steps_is_recorded_with_its_times(tmp_path: Path):
    profiler = Profiler(ProfilerConfig(steps=[2, 3]), tmp_path, rank=7)
    before = time.time()
    for step in range(1, 5):
        with profiler.stage("rollouts"):
            time.sleep(0.01)
        with profiler.step(step):
            pass
    after = time.time()
    [file] = (tmp_path / "profile").glob("rank_0007_*_stages.json")
    found = json.loads(file.read_text())
    assert found["rank"] == 7
    assert [name for name, _, _ in found["stages"]] == ["optimizer step 2", "rollouts", "optimizer step 3"]
    times = [value for _, start, end in found["stages"] for value in (start, end)]
    assert times == sorted(times) and before <= times[0] and times[-1] <= after
    assert found["stages"][1][2] - found["stages"][1][1] >= 0.01
