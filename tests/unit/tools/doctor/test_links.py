"""Who meets whom, and what a rank measures of itself."""

from __future__ import annotations

import pytest
import torch

from sppo_doctor.links import ALL_PAIRS_UP_TO, measure_compute, partners


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 15, 16])
def test_every_pair_meets_once_in_disjoint_rounds(size):
    rounds = list(zip(*(partners(rank, size) for rank in range(size)), strict=True))
    met = []
    for partner_of in rounds:
        for rank, partner in enumerate(partner_of):
            if partner is not None:
                assert partner != rank and partner_of[partner] == rank
                met.append((rank, partner))
    assert sorted(met) == [(a, b) for a in range(size) for b in range(size) if a != b]


@pytest.mark.parametrize("size", [ALL_PAIRS_UP_TO + 1, 100, 1024])
def test_large_jobs_are_sampled(size):
    meetings = [[partner for partner in partners(rank, size) if partner is not None] for rank in range(size)]
    assert max(map(len, meetings)) <= 10
    reached = {0}  # every rank is connected with every other one over some way
    while new := {partner for rank in reached for partner in meetings[rank]} - reached:
        reached |= new
    assert len(reached) == size


def test_compute_is_of_this_order():
    assert 1e7 < measure_compute(torch.device("cpu"), seconds=0.05) < 1e13
