"""Helper processes at their beginning; their ends are tested with what uses them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sppo_megatron.cluster.helper_processes import MARK, SpawnSessions, kill_tree


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


def test_none_that_it_started_runs_when_a_tree_is_killed(tmp_path: Path) -> None:
    """It holds much memory, which the kernel frees first, in a session of its own, and its parent is gone."""
    program = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        f"        held = b'x' * (400 << 20); open({str(tmp_path / 'tmp')!r}, 'w').write(str(os.getpid()))\n"
        f"        os.rename({str(tmp_path / 'tmp')!r}, {str(tmp_path / 'pid')!r}); time.sleep(600)\n    os._exit(0)\n"
        "os.wait()\n"
    )
    leader = subprocess.Popen([sys.executable, "-c", program], env={MARK: "m"}, start_new_session=True)
    leader.wait()
    while not (tmp_path / "pid").exists():
        time.sleep(0.01)
    process = psutil.Process(int((tmp_path / "pid").read_text()))
    kill_tree(leader.pid, "m")
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
