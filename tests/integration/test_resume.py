"""Promise 5, the basic half: killed between mini-batches, the run continues as if it had not been."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.integration import tiny_task

SAVE_EVERY = {"checkpoint.save_interval": 2, "eval.interval": 1}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_task.make_task(tmp_path_factory.mktemp("resume") / "task")


@pytest.fixture(scope="module")
def uninterrupted(task: Path) -> Path:
    output = task.parent / "uninterrupted"
    every_layout = {"checkpoint.reshardable": "true"}
    done = tiny_task.run(tiny_task.overrides(task, output, parallelism="tp2", **SAVE_EVERY, **every_layout), ranks=2)
    assert done.returncode == 0, done.stderr[-4000:]
    return output


def final_weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "hf" / "model.safetensors")


def test_killed_inside_an_iteration(task: Path, uninterrupted: Path) -> None:
    """Step 5 is the second of three of the second iteration: the checkpoint of step 4 lies inside it."""
    output = task.parent / "killed"
    arguments = tiny_task.overrides(task, output, parallelism="tp2", **SAVE_EVERY)
    tiny_task.kill_after(5, arguments, 2, output)
    assert not (output / "hf").exists()

    done = tiny_task.run([*arguments, "checkpoint.load=latest"], ranks=2)
    assert done.returncode == 0, done.stderr[-4000:]
    assert tiny_task.steps(output) == tiny_task.steps(uninterrupted)
    assert tiny_task.evaluations(output) == tiny_task.evaluations(uninterrupted)
    expected = final_weights(uninterrupted)
    for name, weight in final_weights(output).items():
        assert torch.equal(weight, expected[name]), name
    for path in (uninterrupted / "rollouts").iterdir():
        assert (output / "rollouts" / path.name).read_bytes() == path.read_bytes()


def test_killed_while_groups_are_left_out(task: Path) -> None:
    """Iterations that draw as many prompts as it takes until enough groups teach."""
    filtered = {"rollout.filter": "degenerate", "rollout.min_spread": 0.2, "rollout.oversample": 1.5}
    changes = {"checkpoint.save_interval": 2, "data.eval_path": "null", "parallelism": "tp2", **filtered}
    whole, output = task.parent / "filtered", task.parent / "filtered-killed"
    done = tiny_task.run(tiny_task.overrides(task, whole, **changes), ranks=2)
    assert done.returncode == 0, done.stderr[-4000:]
    for line in tiny_task.steps(whole):
        assert line["degenerate_group_share"] == 0 and line["rollout_rounds"] > 1 and line["groups_left_out"] > 0
        assert line["groups_sampled"] - line["groups_left_out"] - line["groups_given_back"] == 6
    arguments = tiny_task.overrides(task, output, **changes)
    tiny_task.kill_after(5, arguments, 2, output)
    done = tiny_task.run([*arguments, "checkpoint.load=latest"], ranks=2)
    assert done.returncode == 0, done.stderr[-4000:]
    assert tiny_task.steps(output) == tiny_task.steps(whole)
    expected = final_weights(whole)
    assert all(torch.equal(weight, expected[name]) for name, weight in final_weights(output).items())


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        (1, {}),
        (2, {"parallelism.pipeline_model_parallel_size": 2}),
        (2, {"train.max_tokens_per_micro_batch": 64}),
    ],
    ids=["one-process", "pp2", "dp2-packed"],
)
def test_continues_on_another_layout(task: Path, uninterrupted: Path, ranks: int, layout: dict) -> None:
    """From the checkpoint of step 8, inside the last iteration."""
    output = task.parent / f"other-{ranks}-{len(layout)}-{next(iter(layout), '')}"
    start = uninterrupted / "checkpoints" / "step_00000008"
    arguments = tiny_task.overrides(task, output, **layout, **SAVE_EVERY, **{"checkpoint.load": start})
    done = tiny_task.run(arguments, ranks=ranks)
    assert done.returncode == 0, done.stderr[-4000:]
    (last,) = tiny_task.steps(output)
    expected = tiny_task.steps(uninterrupted)[-1]
    assert last["step"] == 9
    for name in ("loss", "grad_norm", "log_ratio_abs_max", "lr"):
        assert last[name] == pytest.approx(expected[name], rel=1e-4)
    weights = final_weights(uninterrupted)
    for name, weight in final_weights(output).items():
        assert torch.allclose(weight, weights[name], rtol=1e-5, atol=1e-5), name


def test_latest_with_nothing_to_load_starts_afresh(task: Path, uninterrupted: Path) -> None:
    output = task.parent / "afresh"
    arguments = tiny_task.overrides(task, output, parallelism="tp2", **SAVE_EVERY)
    done = tiny_task.run([*arguments, "checkpoint.load=latest", "train.iterations=1"], ranks=2)
    assert done.returncode == 0, done.stderr[-4000:]
    assert tiny_task.steps(output) == tiny_task.steps(uninterrupted)[:3]


def test_async_save_writes_the_weights_of_its_step(task: Path, uninterrupted: Path) -> None:
    """A save that goes on while training does must not see later weights: resuming from it ends the same."""
    output = task.parent / "async"
    arguments = tiny_task.overrides(task, output, parallelism="tp2", **SAVE_EVERY, **{"checkpoint.async_save": "true"})
    done = tiny_task.run(arguments, ranks=2)
    assert done.returncode == 0, done.stderr[-4000:]
    start = output / "checkpoints" / "step_00000008"
    again = task.parent / "async-again"
    arguments = tiny_task.overrides(task, again, parallelism="tp2", **SAVE_EVERY, **{"checkpoint.load": start})
    done = tiny_task.run(arguments, ranks=2)
    assert done.returncode == 0, done.stderr[-4000:]
    expected = final_weights(uninterrupted)
    for name, weight in final_weights(again).items():
        assert torch.equal(weight, expected[name]), name
