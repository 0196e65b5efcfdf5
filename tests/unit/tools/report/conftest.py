"""Output folders, made of lines as a run writes them."""

import json

import pytest

from sppo_report.run_folder import read_run


@pytest.fixture
def make_run(tmp_path):
    """make_run(metrics, rollouts={iteration: groups}, config="yaml text") -> the Run that is read back."""

    def make(metrics=(), rollouts=None, config="train: {iterations: 4}\n", name="run"):
        folder = tmp_path / name
        (folder / "rollouts").mkdir(parents=True)
        (folder / "config.yaml").write_text(config)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
        for iteration, groups in (rollouts or {}).items():
            text = "".join(json.dumps(group) + "\n" for group in groups)
            (folder / "rollouts" / f"iteration_{iteration:06d}.jsonl").write_text(text)
        return read_run(folder)

    return make


@pytest.fixture
def steps_of():
    """steps_of(iterations, per_iteration, **values) -> lines; a value may be a function of (iteration, place)."""

    def steps(iterations, per_iteration=1, **values):
        return [
            {"step": 1 + iteration * per_iteration + place, "iteration": iteration}
            | {name: value(iteration, place) if callable(value) else value for name, value in values.items()}
            for iteration in range(iterations)
            for place in range(per_iteration)
        ]

    return steps
