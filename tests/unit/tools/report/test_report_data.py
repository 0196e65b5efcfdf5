"""The report's data: complete, JSON, and true to the run's own files."""

import json
import re
from pathlib import Path

import sppo_report
from sppo_megatron.config import Config
from sppo_report.report_data import build_report
from sppo_report.samples import SampleLimits

GROUPS = [{"prompt_token_ids": [1], "responses": [{"token_ids": [2, 3], "reward": 1.0}, {"token_ids": [4]}]}]


def test_runs_side_by_side(make_run, steps_of):
    first = make_run(steps_of(4, per_iteration=2, loss=0.1 + 0.2, custom=1.0), rollouts={0: GROUPS}, name="first")
    second = make_run(steps_of(3, loss=1e-9), name="second")
    told = []
    report = build_report([first, second], SampleLimits(), advance=lambda: told.append("read"))
    assert json.loads(json.dumps(report, allow_nan=False)) == json.loads(json.dumps(report))
    assert told == ["read"]
    assert [panel["title"] for panel in report["panels"]] == ["Loss", "custom"]
    one, two = report["runs"]
    assert one["curves"]["loss"] == {"steps": list(range(1, 9)), "values": [0.3] * 8}
    assert one["iteration_starts"] == {"steps": [1, 3, 5, 7], "values": [0, 1, 2, 3]}
    assert two["curves"]["loss"]["values"] == [1e-9] * 3
    assert (two["iterations"], two["problems"]) == ([], ["rollouts/ holds no iteration_NNNNNN.parquet or .jsonl"])
    assert [len(iteration["samples"]) for iteration in one["iterations"]] == [2]
    assert one["problems"] == ["no tokenizer.json beside the run: responses are shown by token ids; give --tokenizer"]


def test_an_empty_run_is_a_report_too(make_run):
    run = make_run(config="")
    report = build_report([run], SampleLimits())
    assert report["panels"] == [] and report["runs"][0]["curves"] == {}
    assert len(report["runs"][0]["problems"]) == 3


def test_a_win_rate_that_was_not_measured_is_not_shown(make_run, steps_of):
    constant = build_report([make_run(steps_of(2, win_rate_mean=0.5), name="constant")], SampleLimits())
    assert constant["runs"][0]["curves"] == {}
    measured = build_report([make_run(steps_of(2, win_rate_mean=lambda i, _: i / 2), name="real")], SampleLimits())
    assert measured["runs"][0]["curves"]["win_rate_mean"]["values"] == [0.0, 0.5]


def test_configuration_keys_that_the_page_names_exist():
    folder = Path(sppo_report.__file__).parent
    groups = "|".join(name for name in vars(Config()) if name != "output_dir")
    keys = {
        key
        for path in folder.rglob("*.py")
        for key in re.findall(rf"(?<!sppo_megatron\.)\b(?:{groups})\.[a-z_.]+[a-z]", path.read_text())
    }
    assert len(keys) > 25
    for key in keys:
        node = Config()
        for part in key.split("."):
            assert hasattr(node, part), key
            node = getattr(node, part)
