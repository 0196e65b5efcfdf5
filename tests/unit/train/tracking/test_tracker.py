"""The tracker with real TensorBoard files and, if installed, real W&B in its offline mode."""

import importlib.util
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sppo_megatron.config import LoggerConfig
from sppo_megatron.train.tracking.metrics_file import read_metrics
from sppo_megatron.train.tracking.tracker import Tracker


def log_steps(output_dir, steps, **arguments):
    tracker = Tracker(output_dir, LoggerConfig(), **arguments)
    for step in steps:
        tracker.log({"step": step, "loss": step / 2, "kind": "text", "bad": float("nan")})
    tracker.close()
    tracker.close()


def steps_in_tensorboard(output_dir, tag="loss"):
    events = EventAccumulator(str(output_dir / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)], events.Tags()["scalars"]


def test_metrics_and_tensorboard(tmp_path):
    log_steps(tmp_path, [1, 2])
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": 0.5, "kind": "text", "bad": None},
        {"step": 2, "loss": 1.0, "kind": "text", "bad": None},
    ]
    scalars, tags = steps_in_tensorboard(tmp_path)
    assert scalars == [(1, 0.5), (2, 1.0)]
    assert tags == ["loss"]


def test_a_resume_has_every_step_once(tmp_path):
    log_steps(tmp_path, [1, 2, 3])
    log_steps(tmp_path, [3, 4], resume_step=2)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert [step for step, _ in steps_in_tensorboard(tmp_path)[0]] == [1, 2, 3, 4]


def test_a_fresh_run_in_an_old_folder_starts_afresh(tmp_path):
    log_steps(tmp_path, [1, 2, 3])
    log_steps(tmp_path, [1])
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1]


def test_other_ranks_write_nothing(tmp_path):
    log_steps(tmp_path / "run", [1], enabled=False)
    assert not (tmp_path / "run").exists()


def test_without_tensorboard(tmp_path):
    Tracker(tmp_path, LoggerConfig(tensorboard=False)).log({"step": 1})
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_missing_packages_are_named(tmp_path):
    code = (
        "import sys; sys.modules['wandb'] = sys.modules['tensorboard'] = None\n"
        "from sppo_megatron.config import LoggerConfig\nfrom sppo_megatron.train.tracking.tracker import Tracker\n"
        "for config in (LoggerConfig(wandb_project='p'), LoggerConfig()):\n"
        f"    try: Tracker({str(tmp_path)!r}, config)\n"
        "    except ValueError as error: print(error)\n"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    first, second = output.splitlines()
    assert 'pip install "sppo-megatron[wandb]"' in first
    assert "pip install tensorboard" in second


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_offline_resumes_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = LoggerConfig(tensorboard=False, wandb_project="sppo", wandb_name="test")
    ids = []
    for resume_step in (None, 1):
        tracker = Tracker(tmp_path, config, resume_step=resume_step, run_config={"objective": {"eta": 1.0}})
        tracker.log({"step": 1 if resume_step is None else 2, "loss": 0.5, "kind": "text"})
        tracker.close()
        ids.append((tmp_path / "wandb_run_id.txt").read_text())
    assert ids[0] == ids[1]
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2
