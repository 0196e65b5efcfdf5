"""A run's folder: what is there is read, what is missing or broken is named, nothing else is lost."""

import json

import pytest

from sppo_megatron.errors import ConfigError
from sppo_megatron.train.tracking.metrics_file import MetricsFile
from sppo_report.run_folder import finite, names_of, read_run


def test_reads_what_the_tracker_writes(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    lines = [
        {"eval_step": 0, "eval_iteration": 0, "eval_reward_mean": 0.5},
        {"step": 1, "iteration": 0, "loss": 2.0, "grad_norm": float("nan")},
        {"step": 2, "iteration": 0, "loss": 1.0},
        {"step": 3, "iteration": 1, "loss": 0.5},
    ]
    for line in lines:
        file.write(line)
    file.close()
    run = read_run(tmp_path)
    assert run.evaluations == lines[:1]
    assert run.steps == [lines[1] | {"grad_norm": None}, *lines[2:]]
    assert {iteration: [line["step"] for line in own] for iteration, own in run.by_iteration().items()} == {
        0: [1, 2],
        1: [3],
    }
    assert run.problems == ["config.yaml is missing", "rollouts is missing"]
    assert run.num_bytes == (tmp_path / "metrics.jsonl").stat().st_size


def test_broken_lines_are_named_and_the_rest_is_read(tmp_path):
    good = [json.dumps({"step": step, "iteration": 0, "loss": 1.0}) for step in (1, 2)]
    bad = ["not json", "[1]", '{"loss": 1}', '{"step": true, "iteration": 0}', '{"step": 5}', "[" * 100_000]
    repeated = json.dumps({"step": 2, "iteration": 0, "loss": 7.0})
    lines = [*good, *bad, "", repeated, '{"step": 3, "itera']
    (tmp_path / "metrics.jsonl").write_bytes("\n".join(lines).encode() + b"\xff\xfe")
    run = read_run(tmp_path)
    assert [(line["step"], line["loss"]) for line in run.steps] == [(1, 1.0), (2, 7.0)]
    text = "\n".join(run.problems)
    assert "not a JSON object in lines 3, 4, 8, 11, left out" in text
    assert "no integer step and iteration in lines 5, 6, 7, left out" in text
    assert "1 steps are there more than once" in text


def test_many_broken_lines_are_counted(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("x\n" * 9)
    assert "metrics.jsonl: not a JSON object in lines 1, 2, 3, 4, 5 and 4 more, left out" in read_run(tmp_path).problems


@pytest.mark.parametrize(
    ("text", "problem"), [("a: [1", "is not YAML"), ("- 1\n- 2\n", "holds no keys"), ("", "holds no keys")]
)
def test_a_broken_configuration(tmp_path, text, problem):
    (tmp_path / "config.yaml").write_text(text)
    run = read_run(tmp_path)
    assert run.config == {}
    assert any(problem in sentence for sentence in run.problems)


def test_configuration_and_rollouts(tmp_path):
    (tmp_path / "config.yaml").write_text("train: {iterations: 3, seed: null}\noptimizer:\n  lr: 1.0e-6\n")
    (tmp_path / "rollouts").mkdir()
    for name in ("iteration_000010.jsonl", "iteration_000002.jsonl", "iteration_x.jsonl", "notes.txt"):
        (tmp_path / "rollouts" / name).write_text("")
    run = read_run(tmp_path)
    assert run.config == {"train.iterations": 3, "train.seed": None, "optimizer.lr": 1e-6}
    assert [(iteration, path.name) for iteration, path in run.rollout_files.items()] == [
        (2, "iteration_000002.jsonl"),
        (10, "iteration_000010.jsonl"),
    ]
    assert run.problems == ["metrics.jsonl is missing"]


def test_not_an_output_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"neither metrics\.jsonl nor config\.yaml nor rollouts/"):
        read_run(tmp_path)
    with pytest.raises(ConfigError, match="is not a folder"):
        read_run(tmp_path / "nowhere")


def test_names_tell_runs_apart(tmp_path):
    assert names_of([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]
    assert names_of([tmp_path / "first", tmp_path / "second"]) == ["first", "second"]
    assert names_of([tmp_path / "a", tmp_path / "a"]) == ["a", "a"]


@pytest.mark.parametrize("value", [True, "1", None, float("nan"), float("inf"), 10**400, [1.0]])
def test_not_a_finite_number(value):
    assert finite(value) is None
