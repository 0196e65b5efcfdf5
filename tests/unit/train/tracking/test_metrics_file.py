"""metrics.jsonl: whole lines, every step once, also after a kill."""

import json
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from sppo_megatron.train.tracking.metrics_file import MetricsFile, read_metrics


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.jsonl"


def test_what_a_line_holds(path):
    file = MetricsFile(path)
    values = {"loss": np.float32(0.5), "lr": torch.tensor(0.25), "n": np.int64(3), "nan": math.nan, "text": "η"}
    file.write(
        {"step": torch.tensor(1)} | values | {"inf": torch.tensor(-math.inf), "none": None, "list": [1, math.nan]}
    )
    # readable at once, before close
    assert json.loads(path.read_text()) == {
        "step": 1, "loss": 0.5, "lr": 0.25, "n": 3, "nan": None, "text": "η", "inf": None, "none": None,
        "list": [1, None],
    }  # fmt: skip
    file.close()


@pytest.mark.parametrize("metrics", [{}, {"step": None}, {"step": 1.5}, {"step": True}])
def test_a_line_needs_a_step(path, metrics):
    file = MetricsFile(path)
    with pytest.raises(ValueError, match="integer step"):
        file.write(metrics)
    assert path.read_text() == ""


def test_a_resume_keeps_what_its_checkpoint_knew(path):
    file = MetricsFile(path)
    file.write({"step": 0, "eval_reward_mean": 0.1})
    for step in range(1, 6):
        file.write({"step": step, "loss": step})
    file.write({"step": 5, "eval_reward_mean": 0.2})
    file.close()
    with open(path, "a") as torn:
        torn.write('{"step": 2, "lo')  # would be kept by its step
    resumed = MetricsFile(path)
    resumed.truncate_after(3)
    for step in range(4, 7):
        resumed.write({"step": step, "loss": step})
    resumed.close()
    assert [line["step"] for line in read_metrics(path)] == [0, 1, 2, 3, 4, 5, 6]
    assert [entry.name for entry in path.parent.iterdir()] == ["metrics.jsonl"]


def test_a_file_torn_at_any_byte_is_mended(path):
    file = MetricsFile(path)
    for step in (1, 2):
        file.write({"step": step, "note": "ηη"})
    file.close()
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        file = MetricsFile(path)
        file.truncate_after(2)
        file.write({"step": 3})
        file.close()
        # a line that lacks only its line feed is whole
        expected = [1] * (length >= first - 1) + [2] * (length >= len(whole) - 1) + [3]
        assert [line["step"] for line in read_metrics(path)] == expected
        assert path.read_bytes().endswith(b"\n")


def test_lines_outlive_a_killed_process(path):
    code = (
        "import os, sys\nfrom sppo_megatron.train.tracking.metrics_file import MetricsFile\n"
        f"file = MetricsFile({str(path)!r})\n"
        "for step in range(100): file.write({'step': step})\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == -signal.SIGKILL
    assert [line["step"] for line in read_metrics(path)] == list(range(100))
