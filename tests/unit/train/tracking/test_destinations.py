"""Every destination with its real package, without a network; those whose package isn't installed are skipped.

`pip install wandb mlflow trackio swanlab` and this file again tries all of them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sppo_megatron.config import LoggerConfig
from sppo_megatron.train.tracking.destinations.registry import DESTINATIONS
from sppo_megatron.train.tracking.rollout_table import COLUMNS, rows_of
from sppo_megatron.train.tracking.tracker import Tracker
from sppo_megatron.types import Group, Prompt, Response

OFFLINE = {"WANDB_MODE": "offline", "SWANLAB_MODE": "offline", "WANDB_SILENT": "true"}
TOKENS = np.array([1, 2], np.int32)
GROUPS = [
    Group(Prompt(i, TOKENS, f"prompt {i}", "7"), [Response(TOKENS, f"{i}.{k}|`\n", reward=i + k / 4) for k in range(4)])
    for i in range(6)
]


def installed(name: str):
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


def track(folder: Path, **logger: object) -> None:
    """Two steps, an evaluation and a table; stopped, and continued from the first step. In a process of its own:
    these packages keep threads and settings of their own."""
    code = f"""
from sppo_megatron.config import LoggerConfig
from sppo_megatron.train.tracking.tracker import Tracker
from tests.unit.train.tracking.test_destinations import GROUPS
for resume_step in (None, 1):
    config = LoggerConfig(tensorboard=False, rollout_rows=2, **{logger!r})
    tracker = Tracker({str(folder)!r}, config, resume_step=resume_step, run_config={{"objective": {{"eta": 2.0}}}})
    tracker.log_rollouts(GROUPS, resume_step or 0)
    for step in (1, 2) if resume_step is None else (2, 3):
        tracker.log({{"step": step, "loss": step / 2, "kind": "text", "reward_mean/a b": float("nan")}})
    tracker.log({{"eval_step": 3, "eval_pass_at_4/math": 0.5}})
    tracker.close()
"""
    environment = os.environ | OFFLINE | {"TRACKIO_DIR": str(folder / "trackio"), "HF_HUB_OFFLINE": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def test_which_responses_a_table_shows():
    assert [row[1].split("|")[0] for row in rows_of(GROUPS, 3)] == ["0.0", "2.1", "4.2"]
    assert rows_of(GROUPS, 1) == [["prompt 0", "0.0|`\n", "7", 0.0, 2, "stop"]]
    assert len(rows_of(GROUPS, 100)) == len(GROUPS) and rows_of([], 5) == [] and rows_of(GROUPS, 0) == []
    assert len(COLUMNS) == len(rows_of(GROUPS, 1)[0])


def test_every_destination_has_a_key_of_its_own():
    assert len({kind.key for kind in DESTINATIONS}) == len(DESTINATIONS)
    assert [kind.name for kind in DESTINATIONS if kind.is_wanted(LoggerConfig())] == ["tensorboard"]


def test_tensorboard_shows_a_table(tmp_path):
    tracker = Tracker(tmp_path, LoggerConfig(rollout_rows=2))
    tracker.log_rollouts(GROUPS, 5)
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (event,) = events.Tensors("rollouts/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert event.step == 5 and len(text.splitlines()) == 4
    assert text.splitlines()[3] == "| `prompt 3` | `3.1\\|'⏎` | `7` | 3.25 | 2 | `stop` |"


@installed("mlflow")
def test_mlflow_has_one_run_with_every_step(tmp_path):
    track(tmp_path, mlflow_experiment="sppo")
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("sppo").experiment_id])
    assert (tmp_path / "mlflow_run_id.txt").read_text().strip() == run.info.run_id and run.info.status == "FINISHED"
    steps = {(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "loss")}
    assert steps == {(1, 0.5), (2, 1.0), (3, 1.5)}
    assert run.data.metrics["eval_pass_at_4/math"] == 0.5 and "reward_mean/a b" not in run.data.metrics
    tables = [file.path for file in client.list_artifacts(run.info.run_id, "rollouts")]
    assert tables == ["rollouts/step_00000000.json", "rollouts/step_00000001.json"]
    assert json.loads(next(tmp_path.rglob("config.json")).read_text()) == {"objective": {"eta": 2.0}}


@installed("wandb")
def test_wandb_continues_its_run(tmp_path):
    track(tmp_path, wandb_project="sppo", wandb_name="test")
    run_id = (tmp_path / "wandb_run_id.txt").read_text().strip()
    folders = [path.name for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert len(folders) == 2 and all(name.endswith(run_id) for name in folders)
    assert len(list((tmp_path / "wandb").rglob("rollouts_*.table.json"))) == 2


@installed("trackio")
def test_trackio_has_one_run_with_every_step(tmp_path):
    import sqlite3

    track(tmp_path, trackio_project="sppo")
    with sqlite3.connect(tmp_path / "trackio" / "sppo.db") as db:
        rows = db.execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert {name for name, *_ in rows} == {tmp_path.name}
    losses = {(step, json.loads(metrics)["loss"]) for _, step, metrics in rows if "loss" in json.loads(metrics)}
    assert losses == {(1, 0.5), (2, 1.0), (3, 1.5)}
    assert sum("rollouts" in json.loads(metrics) for *_, metrics in rows) == 2


@installed("swanlab")
def test_swanlab_continues_its_run(tmp_path):
    track(tmp_path, swanlab_project="sppo")
    assert (tmp_path / "swanlab_run_id.txt").read_text().strip()
    assert any((tmp_path / "swanlog").iterdir())
