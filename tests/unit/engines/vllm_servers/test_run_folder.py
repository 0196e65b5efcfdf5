"""The folder for weights is the user's: only what this run wrote is ever removed from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sppo_megatron.engines.vllm_servers.disk import RunFolder


def write(folder: RunFolder, version: int) -> Path:
    path = folder.make(version)
    (path / "model.safetensors").write_text("weights")
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_version_takes_the_place_of_the_one_before(tmp_path):
    folder = RunFolder(tmp_path, "run a", is_own=False)
    first = write(folder, 1)
    second = write(folder, 2)
    folder.remove(but=second)
    assert not first.exists() and second.exists()


def test_what_others_put_there_stays(tmp_path):
    notes, by_hand = tmp_path / "notes.txt", tmp_path / "version_000000001"
    notes.write_text("mine")
    by_hand.mkdir()
    (by_hand / "model.safetensors").write_text("mine")
    other = write(RunFolder(tmp_path, "run b", is_own=False), 1)
    (tmp_path / "version_link").symlink_to(by_hand)

    folder = RunFolder(tmp_path, "run a", is_own=False)
    write(folder, 1)
    folder.remove(but=write(folder, 2))
    folder.remove()
    assert names(tmp_path) == {notes.name, by_hand.name, other.name, "version_link"}
    assert (by_hand / "model.safetensors").exists() and (other / "model.safetensors").exists()


def test_the_users_folder_stays_though_it_is_empty(tmp_path):
    folder = RunFolder(tmp_path / "sync", "run a", is_own=False)
    write(folder, 1)
    folder.remove()
    assert names(tmp_path / "sync") == set()


def test_the_runs_own_folder_goes_when_it_is_empty(tmp_path):
    folder = RunFolder(tmp_path / "weights", "run a", is_own=True)
    write(folder, 1)
    folder.remove()
    assert not (tmp_path / "weights").exists()
    write(folder, 1)
    (tmp_path / "weights" / "notes.txt").write_text("mine")
    folder.remove()
    assert names(tmp_path / "weights") == {"notes.txt"}


def test_what_a_killed_process_of_the_run_left_is_removed(tmp_path):
    left = write(RunFolder(tmp_path, "run a", is_own=False), 3)
    continued = RunFolder(tmp_path, "run a", is_own=False)
    continued.remove(but=write(continued, 2))
    assert not left.exists()


def test_a_version_is_written_anew(tmp_path):
    folder = RunFolder(tmp_path, "run a", is_own=False)
    (write(folder, 1) / "stale.safetensors").write_text("of before")
    assert "stale.safetensors" not in names(write(folder, 1))


def test_a_folder_of_that_name_that_the_run_did_not_make(tmp_path):
    path = write(RunFolder(tmp_path, "run a", is_own=False), 1)
    (path / "written_by_sppo_megatron").unlink()
    with pytest.raises(FileExistsError, match="this run didn't make it"):
        RunFolder(tmp_path, "run a", is_own=False).make(1)
    assert (path / "model.safetensors").exists()
