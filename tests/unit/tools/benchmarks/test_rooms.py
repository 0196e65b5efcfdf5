"""Files and moves of a walk, counted by hand; of real calls, as Python makes them."""

from __future__ import annotations

import numpy as np

from sppo_benchmarks.rooms import Walk, watched
from sppo_megatron.batch.training_batch import members
from sppo_megatron.parallel import zigzag_indices

CALLS = [("train/loop.py", "f"), ("batch/a.py", "g"), ("batch/b.py", "h"), ("megatron_cpu/shim.py", "i")]


def test_a_move_is_a_change_of_room():
    walk = Walk([*CALLS, ("batch/b.py", "h"), ("batch/b.py", "k"), ("types.py", "length")])
    assert (len(walk.files), walk.moves) == (5, 4)
    there = walk.outside("megatron_cpu")
    assert (len(there.files), there.moves) == (4, 2)
    assert there.lines() == ["train/loop.py: f", "batch/a.py: g", "batch/b.py: h k", "types.py: length"]


def test_the_last_call_of_the_package_counts():
    walk = Walk()

    def stage(again: bool) -> int:
        members(np.zeros((2, 1), np.int64))
        if again:
            zigzag_indices([4], 1, 0)
            members(np.zeros((2, 1), np.int64))
        return 7

    call = watched(stage, walk)
    assert call(True) == 7 and walk.moves == 2 and walk.files == {"batch/training_batch.py", "parallel/sequence.py"}
    assert call(again=False) == 7 and walk.calls == [("batch/training_batch.py", "members")]
