"""Weight sync where nothing moves."""

import pytest

from sppo_megatron.engines.in_process import InProcessSync
from sppo_megatron.engines.weight_sync import WeightSync


def test_records_the_version_and_moves_nothing():
    def weights():
        raise AssertionError("the weights were exported")
        yield

    sync: WeightSync = InProcessSync()
    assert sync.version == -1
    for version in (0, 1, 7):
        sync.push(weights(), version)
        assert sync.version == version


def test_a_version_never_goes_back():
    sync = InProcessSync()
    sync.push(iter(()), 3)
    with pytest.raises(ValueError, match="version 2 are older than version 3"):
        sync.push(iter(()), 2)
    assert sync.version == 3
