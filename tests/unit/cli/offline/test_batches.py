"""Batches and shards, over every small size."""

from __future__ import annotations

import itertools

import pytest

from sppo_megatron.cli.offline.batches import Batches, Shard


@pytest.mark.parametrize(("size", "count"), itertools.product((1, 2, 5, 20), (1, 2, 3, 7)))
@pytest.mark.parametrize("total", [0, 1, 4, 5, 13])
def test_shards_together_are_the_whole_list_in_order(total, size, count):
    whole = Batches(total, size)
    shards = [Batches(total, size, Shard(index, count)) for index in range(count)]
    assert [batch for shard in shards for batch in shard.of_shard] == list(whole.of_shard)
    places = [place for shard in shards for batch in shard.of_shard for place in shard.items(batch)]
    assert places == list(range(total))
    assert sum(shard.num_items for shard in shards) == total
    sizes = [len(shard.of_shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1
    for shard in shards:
        if shard.num_items:
            assert shard.first_item == shard.items(shard.of_shard.start).start


def test_only_whole_batches_are_finished():
    shard = Batches(11, 3, Shard(1, 2))  # batches of 3 and 2, behind two of 3
    assert [list(shard.items(batch)) for batch in shard.of_shard] == [[6, 7, 8], [9, 10]]
    assert [shard.finished(lines) for lines in range(6)] == [0, 0, 0, 1, 1, 2]


def test_shards_as_they_are_written():
    assert Shard.parse("0/1") == Shard() and Shard.parse("3/4") == Shard(3, 4)


@pytest.mark.parametrize("text", ["4/4", "1", "0/0", "-1/2", "a/b", "1/2/3"])
def test_what_is_no_share(text):
    with pytest.raises(ValueError, match="is no share"):
        Shard.parse(text)
