"""Runs that repeat each other are found by what they were configured with."""

from __future__ import annotations

from pathlib import Path

from sppo_report.run_folder import Run
from sppo_report.seeds import seed_groups


def run(**config) -> Run:
    return Run("a", Path("a"), {key.replace("__", "."): value for key, value in config.items()})


def test_only_seeds_and_places_may_differ():
    same = {"optimizer__lr": 1e-6, "data__sources": [{"name": "a"}]}
    runs = [
        run(**same, train__seed=1, rollout__seed=5, output_dir="x", logger__progress=True),
        run(**same, train__seed=2, rollout__seed=6, output_dir="y", logger__progress=False),
        run(**same | {"optimizer__lr": 2e-6}, train__seed=1),
        run(**same, train__seed=3, checkpoint__save_interval=5),
        run(**same | {"data__sources": [{"name": "b"}]}),
    ]
    assert seed_groups(runs) == [0, 0, 2, 0, 4]


def test_runs_of_unknown_configuration_are_alone():
    assert seed_groups([run(), run(), run(train__seed=1)]) == [0, 1, 2]
