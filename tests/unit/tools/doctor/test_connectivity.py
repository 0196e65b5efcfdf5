"""Missing ranks by name, without processes."""

from __future__ import annotations

import time

import torch.distributed as dist

from sppo_doctor.connectivity import missing_ranks


def test_missing_ranks_are_named_in_time():
    store = dist.HashStore()
    assert missing_ranks(store, 0, 1, timeout_s=5.0) == []
    started = time.monotonic()
    assert missing_ranks(store, 2, 4, timeout_s=0.2) == [1, 3]
    assert time.monotonic() - started < 2.0
