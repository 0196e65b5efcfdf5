"""What stays of published checkpoints, and where `best` leads."""

from __future__ import annotations

from pathlib import Path

import pytest

from sppo_megatron.errors import ConfigError
from sppo_megatron.policy.checkpoint.folder import (
    checkpoint_path,
    latest_checkpoint,
    partial_path,
    publish,
    remove_leftovers,
    wait_until_visible,
)


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


def test_what_the_link_leads_to_is_never_removed(tmp_path: Path) -> None:
    """Also if the best step isn't in this folder, as in a run that was continued from another's checkpoint."""
    save(tmp_path, 2, best=2)
    for step in (4, 6, 8):
        save(tmp_path, step, best=1)
    assert steps(tmp_path) == [2, 6, 8] and (tmp_path / "best" / "weights").read_text() == "of step 2"


def test_a_future_that_was_given_up_goes_and_its_best_with_it(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        save(tmp_path, step, keep_last=3, best=6)
    save(tmp_path, 3, keep_last=3, best=1)  # continued from step 2
    assert steps(tmp_path) == [2, 3]
    assert not (tmp_path / "best").is_symlink()


def test_folders_of_others_stay(tmp_path: Path) -> None:
    others = ["step_00000001", "step_00000002.partial", "step_00000003.stale", "step_1.partial", "notes"]
    for name in others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("not written by this program")
    ours = tmp_path / "step_00000004.partial"
    ours.mkdir()
    (ours / "model.json").write_text("{}")
    remove_leftovers(tmp_path)
    for step in (5, 6, 7):
        save(tmp_path, step, keep_last=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "step_00000007"])


def test_a_checkpoint_that_this_node_cannot_see(tmp_path: Path) -> None:
    save(tmp_path, 2)
    wait_until_visible(tmp_path / "step_00000002")
    with pytest.raises(ConfigError, match="every node needs the same storage"):
        wait_until_visible(tmp_path / "step_00000004", timeout_s=0)


def test_the_link_survives_a_move(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    save(tmp_path / "run", 4, best=4)
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "best" / "weights").read_text() == "of step 4"
