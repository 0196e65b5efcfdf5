"""Batches into a file, in this process: what is made again after a stop, and what is kept."""

from __future__ import annotations

import numpy as np
import pytest

from sppo_megatron.cli.offline.batches import Batches, Shard
from sppo_megatron.cli.offline.write import BatchWriter, Output
from sppo_megatron.data.rollout_file import group_line, read_groups
from sppo_megatron.errors import ConfigError
from sppo_megatron.types import Group, Prompt, Response

BATCHES = Batches(8, 3)


def make(batch: int) -> tuple[list[Group], dict[str, float]]:
    ids = np.array([1, 2], np.int32)
    places = BATCHES.items(batch)
    return [Group(Prompt(i, ids), [Response(ids, rollout_log_probs=np.float32([-i, -0.1]))]) for i in places], {}


WHOLE = b"".join(group_line(group) for batch in BATCHES.of_shard for group in make(batch)[0]).decode()


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop_at", [0, 1, 2])
def test_what_is_finished_is_not_made_again(tmp_path, capsys, stop_at):
    output, made = Output(tmp_path / "out.jsonl"), []

    def until(batch):
        if batch == stop_at:
            raise Stop
        made.append(batch)
        return make(batch)

    with pytest.raises(Stop):
        BatchWriter(output, {"seed": 1}, BATCHES).write(until)
    assert not output.path.exists()
    stop_at = None
    BatchWriter(output, {"seed": 1}, BATCHES).write(until)
    assert made == [0, 1, 2]
    assert output.path.read_text() == WHOLE
    assert capsys.readouterr().out.splitlines()[-1].startswith("group 8/8")


def test_a_batch_that_is_not_whole_is_made_again(tmp_path):
    path = tmp_path / "out.jsonl"
    BatchWriter(Output(path, progress=False), {}, BATCHES)
    lines = WHOLE.splitlines(keepends=True)
    (tmp_path / "out.jsonl.partial").write_text("".join(lines[:5]))
    made = []
    BatchWriter(Output(path, progress=False), {}, BATCHES).write(lambda batch: made.append(batch) or make(batch))
    assert made == [1, 2] and path.read_text() == WHOLE


def test_shards_behind_each_other(tmp_path):
    text = ""
    for index in range(2):
        path = tmp_path / f"{index}.jsonl"
        BatchWriter(Output(path, progress=False), {}, Batches(8, 3, Shard(index, 2))).write(make)
        text += path.read_text()
    assert text == WHOLE
    assert [group.prompt.index for group in read_groups(tmp_path / "1.jsonl")] == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("other", [Batches(8, 4), Batches(8, 3, Shard(0, 2))])
def test_other_batches_are_other_content(tmp_path, other):
    output = Output(tmp_path / "out.jsonl")
    BatchWriter(output, {}, BATCHES)
    with pytest.raises(ConfigError, match="was begun with other settings"):
        BatchWriter(output, {}, other)
