"""Helper processes at their beginning; their ends are tested with what uses them."""

from __future__ import annotations

import signal
import time

import pytest

from sppo_megatron.cluster.helper_processes import SpawnSessions


@pytest.mark.parametrize("after_s", [0.0, 0.02])
def test_one_that_still_starts_is_stopped_at_once(after_s: float, capfd: pytest.CaptureFixture[str]) -> None:
    """It leads no session then, so its group can't be killed; left alone it misses what its pool has taken down."""
    process = SpawnSessions().Process(target=time.sleep, args=(60,))
    process.start()
    time.sleep(after_s)
    process.terminate()
    process.join(10)
    assert process.exitcode == -signal.SIGKILL
    assert capfd.readouterr().err == ""
