"""Who is at fault, from who found what wrong. The collectives themselves need ranks: see tests/distributed."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from sppo_doctor.collectives import Mistake, check_collectives, suspects


def mistakes(*pairs: tuple[int, int]) -> list[Mistake]:
    """(contributor, receiver) of each."""
    return [Mistake("all_reduce", *pair) for pair in pairs]


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], []),
        ([(1, 0), (1, 1), (1, 2), (1, 3)], [1]),  # everybody got something wrong from rank 1
        ([(0, 2), (1, 2), (2, 2), (3, 2)], [2]),  # rank 2 got something wrong from everybody
        ([(1, 0), (1, 2), (0, 1), (2, 1)], [1]),
        ([(1, 0), (1, 2), (1, 3), (3, 0), (3, 2)], [1, 3]),  # two faulty contributors
        ([(2, 3)], [2]),  # one link: either end
    ],
)
def test_the_fewest_ranks_that_explain_everything(pairs, expected):
    assert suspects(mistakes(*pairs)) == expected


def test_one_rank_by_itself():
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        assert check_collectives(dist.group.WORLD, torch.device("cpu")) == []
    finally:
        dist.destroy_process_group()
