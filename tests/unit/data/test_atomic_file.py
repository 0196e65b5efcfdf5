"""Whole or not at all: blocks that fail, calls that are killed at any moment, names that others have, links."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from sppo_megatron.data.atomic_file import atomic_file, atomic_folder, write_atomically
from sppo_megatron.errors import ConfigError


def content_of(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(folder, text):
    with atomic_folder(folder) as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "weights").write_text(text)


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "new" / "a.json"
    with atomic_file(path) as file:
        file.write(b"one ")
        assert not path.exists()
        file.write(b"two")
    assert path.read_bytes() == b"one two" and names(path.parent) == ["a.json"]
    write_atomically(path, "größer")
    assert path.read_text(encoding="utf-8") == "größer"


def test_a_block_that_fails_leaves_what_was_there(tmp_path):
    write_atomically(tmp_path / "a", "old")
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "a") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    write(tmp_path / "f", "old")
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "f") as partial:
        (partial / "weights").write_text("half")
        raise ZeroDivisionError
    assert names(tmp_path) == ["a", "f"]
    assert (tmp_path / "a").read_text() == "old" and content_of(tmp_path / "f") == {"deep/weights": "old"}


def test_who_reads_the_old_file_reads_all_of_it(tmp_path):
    path = tmp_path / "report.html"
    write_atomically(path, "first")
    with open(path) as reader:
        write_atomically(path, "second")
        assert reader.read() == "first"
    assert path.read_text() == "second" and names(tmp_path) == ["report.html"]


def test_the_mode_is_that_of_any_new_file(tmp_path):
    write_atomically(tmp_path / "a", "")
    (tmp_path / "b").write_text("")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    write(tmp_path / "f", "one")
    (tmp_path / "f" / "of before").write_text("")
    write(tmp_path / "f", "two")
    assert content_of(tmp_path / "f") == {"deep/weights": "two"} and names(tmp_path) == ["f"]


def test_links_are_followed(tmp_path):
    (tmp_path / "big_disk").mkdir()
    (tmp_path / "f").symlink_to("big_disk/f")
    (tmp_path / "a").symlink_to("big_disk/a")
    for text in ("one", "two"):
        write(tmp_path / "f", text)
        write_atomically(tmp_path / "a", text)
    assert (tmp_path / "f").is_symlink() and (tmp_path / "a").is_symlink()
    assert content_of(tmp_path / "big_disk") == {"f/deep/weights": "two", "a": "two"}


@pytest.mark.parametrize("suffix", [".partial", ".old"])
def test_what_others_put_there_is_never_deleted(tmp_path, suffix):
    theirs = tmp_path / f"f{suffix}"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("years")
    with pytest.raises(ConfigError, match=f"f{suffix} is in the way of writing .*/f, .*move it away"):
        write(tmp_path / "f", "one")
    assert content_of(theirs) == {"thesis.tex": "years"} and names(tmp_path) == [theirs.name]


KILLED = """
import os, signal, sys
from pathlib import Path
from sppo_megatron.data.atomic_file import atomic_folder, write_atomically
calls = 0
def killing(event, arguments):
    global calls
    if event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "open", "os.open", "shutil.rmtree"):
        calls += 1
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(killing)
with atomic_folder(sys.argv[1]) as partial:
    (partial / "deep").mkdir()
    (partial / "deep" / "weights").write_text("two")
"""


def test_killed_at_any_call_the_folder_is_the_old_or_the_new_one(tmp_path):
    """Also if it had been set aside: the next call puts it back before anything else."""
    seen = set()
    for moment in range(1, 60):
        folder = tmp_path / str(moment) / "f"
        write(folder, "one")
        ended = subprocess.run([sys.executable, "-S", "-c", KILLED, str(folder), str(moment)], check=False).returncode
        if folder.exists():
            seen.add(content_of(folder)["deep/weights"])
        with pytest.raises(ZeroDivisionError), atomic_folder(folder):
            raise ZeroDivisionError
        found = content_of(folder)
        found.pop(".unfinished_by_sppo_megatron", None)
        assert found in ({"deep/weights": "one"}, {"deep/weights": "two"})
        assert names(folder.parent) == ["f"]
        write(folder, "three")
        assert content_of(folder) == {"deep/weights": "three"} and names(folder.parent) == ["f"]
        if ended == 0:
            assert seen == {"one", "two"}
            return
        assert ended == -signal.SIGKILL, os.strerror(abs(ended))
    pytest.fail("it never came to its end")
