"""A rank that doesn't join is named."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from sppo_megatron.cluster.rendezvous import attempt_store, has_launcher
from sppo_megatron.errors import LostRankError


def test_the_first_rank_names_the_missing_ones():
    store = dist.HashStore()
    present = threading.Thread(target=attempt_store, args=(store, 1, 4, timedelta(seconds=5)))
    present.start()
    with pytest.raises(LostRankError, match=r"ranks \[2, 3\] did not join the job"):
        attempt_store(store, 0, 4, timedelta(seconds=0.5))
    present.join()


def test_without_the_first_rank():
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=0.2))
    with pytest.raises(LostRankError, match="rank 2: no answer from rank 0"):
        attempt_store(store, 2, 4, timedelta(seconds=0.2))


def test_a_store_of_an_earlier_attempt_shows_nothing():
    store = dist.HashStore()
    stores: dict[int, dist.Store] = {}

    def join(rank: int) -> None:
        stores[rank] = attempt_store(store, rank, 2, timedelta(seconds=5))

    for attempt in range(2):
        ranks = [threading.Thread(target=join, args=(rank,)) for rank in range(2)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        assert not stores[1].check(["address"])
        stores[0].set("address", str(attempt))
        assert stores[1].get("address") == str(attempt).encode()


@pytest.mark.parametrize(
    ("variables", "launched"),
    [
        ({}, False),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}, False),  # of an earlier run in this process
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}, True),
        ({"RANK": "1", "WORLD_SIZE": "2"}, True),  # without a port torch says what is missing
    ],
)
def test_who_has_a_launcher(monkeypatch, variables, launched):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert has_launcher() is launched
