"""What stays of published checkpoints, and where `best` leads."""

from __future__ import annotations

from pathlib import Path

from sppo_megatron.policy.checkpoint.folder import checkpoint_path, latest_checkpoint, partial_path, publish


def save(folder: Path, step: int, keep_last: int = 2, best: int = 0) -> None:
    partial = partial_path(checkpoint_path(folder, step))
    partial.mkdir()
    (partial / "weights").write_text(f"of step {step}")
    publish(partial, checkpoint_path(folder, step), keep_last, best)


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in folder.iterdir() if path.name != "best")


def test_the_last_ones_stay(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        save(tmp_path, step)
    assert steps(tmp_path) == [6, 8] and not (tmp_path / "best").exists()


def test_the_best_one_stays_too(tmp_path: Path) -> None:
    save(tmp_path, 2)
    save(tmp_path, 4, best=4)
    for step in (6, 8, 10):
        save(tmp_path, step, best=4)
    assert steps(tmp_path) == [4, 8, 10]
    assert (tmp_path / "best" / "weights").read_text() == "of step 4"
    assert latest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 10)
    save(tmp_path, 12, best=12)  # a better one: the older best goes
    assert steps(tmp_path) == [10, 12]
    assert (tmp_path / "best" / "weights").read_text() == "of step 12"


def test_a_best_one_that_is_gone_leaves_the_link_alone(tmp_path: Path) -> None:
    save(tmp_path, 4, best=4)
    save(tmp_path, 6, best=3)
    assert (tmp_path / "best").resolve().name == "step_00000004"


def test_the_link_survives_a_move(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    save(tmp_path / "run", 4, best=4)
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "best" / "weights").read_text() == "of step 4"
