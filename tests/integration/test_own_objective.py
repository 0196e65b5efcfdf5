"""An objective of the user's own by the real command: SPPO written as one trains as SPPO does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration import tiny_task

OWN = """
from dataclasses import dataclass

import torch

from sppo_megatron.objective import LossSums
from sppo_megatron.objective.base import Objective


def squared(log_ratio, batch):
    return (log_ratio - batch.columns["target"]) ** 2


@dataclass(frozen=True, kw_only=True)
class Powers(Objective):
    power: float = 1.0

    means = {"own_mean": ("own_sum", "sequences")}

    def loss(self, log_ratio, batch):
        losses = (log_ratio - batch.columns["target"]).abs() ** self.power
        return LossSums(losses.sum(), torch.ones(()), {"own_sum": losses.detach().sum()})
"""
FUNCTION = {"objective.name": "function", "objective.function": "own_objective:squared"}
CLASS = {
    "objective.name": "function",
    "objective.function": "own_objective:Powers",
    "objective.options": "{power: 2.0}",
}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_task.make_task(tmp_path_factory.mktemp("own") / "task")
    (folder / "own_objective.py").write_text(OWN)
    return folder


@pytest.fixture(scope="module")
def sppo(task: Path) -> list[dict]:
    return trained(task, "sppo", {"train.fused_loss": "false"})


def trained(task: Path, name: str, changes: dict) -> list[dict]:
    output = task.parent / name
    done = tiny_task.run(tiny_task.overrides(task, output, **{"train.iterations": 2, **changes}), cwd=task)
    assert done.returncode == 0, done.stderr[-4000:]
    return tiny_task.steps(output)


@pytest.mark.parametrize("own", [FUNCTION, CLASS], ids=["function", "class"])
def test_trains_as_the_objective_that_it_is(task: Path, sppo: list[dict], own: dict) -> None:
    lines = trained(task, own["objective.function"].partition(":")[2], own)
    assert len(lines) == len(sppo) > 3
    for line, expected in zip(lines, sppo, strict=True):
        if own is CLASS:
            assert line.pop("own_mean") == pytest.approx(line["loss"], rel=1e-6)
        assert line == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_a_module_that_is_not_there(task: Path) -> None:
    own = FUNCTION | {"objective.function": "own_objektive:squared"}
    done = tiny_task.run(tiny_task.overrides(task, task.parent / "missing", **own), cwd=task)
    assert done.returncode == 2 and "objective.function='own_objektive:squared'" in done.stderr
    assert "Traceback" not in done.stderr
