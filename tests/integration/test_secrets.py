"""Nothing that a run writes or says holds a key: one run with every key set, whose judge repeats its own in errors."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from sppo_megatron.cli.main import main as sppo
from tests.forked import processes
from tests.integration import tiny_task
from tests.stored_rollouts import read_records, stored_groups
from tests.unit.rewards.endpoint import Endpoint, completion

KEYS = {name: f"{name.lower()}-of-this-test" for name in ("JUDGE_API_KEY", "VLLM_API_KEY", "WANDB_API_KEY", "HF_TOKEN")}
WANDB = """
import json, pathlib

def init(**settings):
    pathlib.Path(settings["dir"], "wandb.json").write_text(json.dumps(settings))
    return Run()

class Run:
    id = "an id"
    def define_metric(self, *names, **settings): ...
    def log(self, metrics): ...
    def finish(self): ...
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_task.make_task(tmp_path_factory.mktemp("task"))


def test_no_output_holds_a_key(task: Path, tmp_path: Path, capfd) -> None:
    modules, output = tmp_path / "modules", tmp_path / "run"
    modules.mkdir()
    (modules / "wandb.py").write_text(WANDB)

    def judge(endpoint: Endpoint, message: str):
        fails = random.Random(message).random() < 0.1
        return (400, {"error": f"bad request of {KEYS['JUDGE_API_KEY']}"}) if fails else completion("A", {"A": -0.1})

    endpoint = Endpoint(judge, key=KEYS["JUDGE_API_KEY"])
    changes = {
        "reward": "judge",
        "reward.kind": "judge",
        "reward.judge.urls": f"[{endpoint.url}]",
        "objective": "sppo_win_rate",
        "data.eval_path": "null",
        "train.iterations": 2,
        "checkpoint.save_interval": 3,
        "logger.tensorboard": "true",
        "logger.wandb_project": "p",
    }
    environment = tiny_task.environment()
    environment = environment | KEYS | {"PYTHONPATH": f"{modules}:{environment['PYTHONPATH']}"}
    command = tiny_task.command(tiny_task.overrides(task, output, **changes), 1)
    done = processes.run(command, 240, fresh=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "bad request of ***" in done.stderr
    stored = stored_groups(output, 0)
    errors = [response["error"] for group in stored for response in group["responses"] if "error" in response]
    assert any("bad request of ***" in error for error in errors)
    assert (
        json.loads((output / "wandb.json").read_text())["config"]["reward"]["judge"]["api_key_env"] == "JUDGE_API_KEY"
    )
    assert sppo(["report", str(output)]) == 0
    more = [*command, "checkpoint.load=latest", "train.iterations=3"]
    wrong = {"JUDGE_API_KEY": KEYS["VLLM_API_KEY"]}
    refused, continued = (processes.run(more, 240, env=environment | changed) for changed in (wrong, {}))
    endpoint.close()
    assert refused.returncode == 2 and "reward.judge.api_key_env" in refused.stderr, refused.stderr[-3000:]
    assert continued.returncode == 0, continued.stderr[-3000:]
    said = [text for one in (done, refused, continued) for text in (one.stdout, one.stderr)]
    said += list(capfd.readouterr())
    files = [path for path in output.rglob("*") if path.is_file()]
    assert {"config.yaml", "metrics.jsonl", "wandb.json", "report.html"} <= {path.name for path in files}
    said += [json.dumps(read_records(path)) for path in files if path.suffix == ".parquet"]  # compressed as they lie
    for key in KEYS.values():
        assert not any(key in text for text in said)
        assert not [path for path in files if key.encode() in path.read_bytes()]
