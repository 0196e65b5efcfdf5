"""Slow ranks and slow pairs, from figures by hand."""

from __future__ import annotations

from itertools import combinations

import pytest

from sppo_doctor.links import Link
from sppo_doctor.stragglers import slow_pairs, slow_ranks

ONE_HOST = ["a"] * 4
FAST, SLOW_LINK = Link(1e-5, 1e11), Link(1e-4, 1e10)


def links(size: int = 4, **changed: Link) -> dict:
    """Every pair FAST but those that are named, as p01 for ranks 0 and 1."""
    found = dict.fromkeys(combinations(range(size), 2), FAST)
    return found | {(int(name[1]), int(name[2])): link for name, link in changed.items()}


def test_equals_have_no_straggler():
    assert slow_ranks([1e12, 1.2e12, 0.6e12, 1.1e12], links(), ONE_HOST) == {}
    assert slow_pairs(links(), ONE_HOST, {}) == {}


def test_a_slow_processor():
    slow = slow_ranks([1e12, 1e12, 0.2e12, 1e12], links(), ONE_HOST)
    assert slow == {2: "computes 2e+11 FLOP/s, the others 1e+12"}


def test_a_rank_whose_every_link_is_slow():
    changed = links(p01=SLOW_LINK, p12=SLOW_LINK, p13=SLOW_LINK)
    slow = slow_ranks([1e12] * 4, changed, ONE_HOST)
    assert set(slow) == {1}
    assert "100 µs of latency, the others' 10 µs" in slow[1] and "10 GB/s, the others' 100 GB/s" in slow[1]
    assert slow_pairs(changed, ONE_HOST, slow) == {}  # said once


def test_one_slow_link_is_nobodys():
    changed = links(p02=SLOW_LINK)
    assert slow_ranks([1e12] * 4, changed, ONE_HOST) == {}
    assert slow_pairs(changed, ONE_HOST, {}) == {(0, 2): "10 GB/s, the median is 100"}


def test_links_between_hosts_are_compared_with_each_other():
    hosts = ["a", "a", "b", "b"]
    between = Link(1e-4, 1e10)
    changed = links(p02=between, p03=between, p12=between, p13=between)
    assert slow_ranks([1e12] * 4, changed, hosts) == {}
    assert slow_pairs(changed, hosts, {}) == {}


def test_a_slow_network_interface():
    hosts = ["a", "b", "c", "d"]
    changed = links(p01=SLOW_LINK, p12=SLOW_LINK, p13=SLOW_LINK)
    assert set(slow_ranks([1e12] * 4, changed, hosts)) == {1}
    assert set(slow_pairs(links(p13=SLOW_LINK), hosts, {})) == {(1, 3)}


@pytest.mark.parametrize("size", [1, 2])
def test_two_ranks_share_their_one_link(size):
    assert slow_ranks([1e12] * size, links(size), ["a"] * size) == {}
    assert 1 in slow_ranks([1e12, 1e11], links(2), ["a"] * 2)
