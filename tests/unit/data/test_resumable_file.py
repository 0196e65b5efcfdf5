"""Files that are continued: cut at every byte, begun with other settings, finished, replaced."""

from __future__ import annotations

import re

import pytest

from sppo_megatron.data.resumable_file import ResumableFile
from sppo_megatron.errors import ConfigError

SETTINGS = {"seed": 1, "sampling": {"temperature": 1.0, "stop": [1, 2]}, "prompts": "abc"}
BATCHES = [[b"one\n", "zwei äöü\n".encode()], [b"three\n", b"\n"], [b"5\n"]]
WHOLE = b"".join(line for batch in BATCHES for line in batch)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "rollouts.jsonl"


def partial(path):
    return path.with_name("rollouts.jsonl.partial")


def write_rest(path, settings=SETTINGS):
    """Continues with whole batches, as the commands do."""
    file = ResumableFile(path, settings)
    done = 0
    for number, batch in enumerate(BATCHES):
        if file.num_lines >= done + len(batch):
            done += len(batch)
            continue
        file.keep_lines(done)
        for rest in BATCHES[number:]:
            file.append(rest)
        break
    file.finish()


def test_written_at_once(path):
    write_rest(path)
    assert path.read_bytes() == WHOLE
    assert [each.name for each in path.parent.iterdir()] == ["rollouts.jsonl"]


@pytest.mark.parametrize("cut", range(len(WHOLE) + 1))
def test_cut_at_every_byte_it_ends_the_same(path, cut):
    file = ResumableFile(path, SETTINGS)
    for batch in BATCHES:
        file.append(batch)
    file.close()
    assert not path.exists() and partial(path).read_bytes() == WHOLE
    partial(path).write_bytes(WHOLE[:cut])
    write_rest(path)
    assert path.read_bytes() == WHOLE


def test_a_torn_line_is_cut_off(path):
    file = ResumableFile(path, SETTINGS)
    file.append(BATCHES[0])
    file.close()
    partial(path).write_bytes(partial(path).read_bytes() + b"torn")
    file = ResumableFile(path, SETTINGS)
    assert file.num_lines == 2 and partial(path).read_bytes() == b"".join(BATCHES[0])
    file.close()


def test_other_settings_are_refused_and_named(path):
    ResumableFile(path, SETTINGS).close()
    before = partial(path).read_bytes()
    expected = (
        f"{partial(path)} was begun with other settings (seed was 1 and is 2): delete {partial(path)} to begin anew"
    )
    with pytest.raises(ConfigError, match=re.escape(expected)):
        ResumableFile(path, SETTINGS | {"seed": 2})
    with pytest.raises(ConfigError, match="shard was null and is 0"):
        ResumableFile(path, SETTINGS | {"shard": 0}, overwrite=True)
    assert partial(path).read_bytes() == before


def test_a_partial_file_that_nobody_knows_is_refused(path):
    ResumableFile(path, SETTINGS).close()
    path.with_name("rollouts.jsonl.partial.json").unlink()
    with pytest.raises(ConfigError, match="is gone: delete"):
        ResumableFile(path, SETTINGS)


def test_what_is_there_is_kept_until_its_successor_is_whole(path):
    path.parent.mkdir()
    path.write_text("old\n")
    with pytest.raises(ConfigError, match="exists: give another --output, or --overwrite"):
        ResumableFile(path, SETTINGS)
    file = ResumableFile(path, SETTINGS, overwrite=True)
    file.append(BATCHES[0])
    file.close()
    assert path.read_text() == "old\n"
    file = ResumableFile(path, SETTINGS, overwrite=True)
    assert file.num_lines == 2
    file.finish()
    assert path.read_bytes() == b"".join(BATCHES[0])


def test_settings_of_a_finished_file_do_not_bind_the_next(path):
    """As after a kill that came between giving the name and removing the settings, and the file was moved away."""
    file = ResumableFile(path, SETTINGS)
    settings = path.with_name("rollouts.jsonl.partial.json").read_text()
    file.finish()
    path.rename(path.with_name("elsewhere"))
    path.with_name("rollouts.jsonl.partial.json").write_text(settings)
    ResumableFile(path, SETTINGS | {"seed": 2}).close()
