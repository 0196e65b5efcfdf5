"""Two jobs and one output folder, with real processes; what a lock of another host looks like is written by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from sppo_megatron.cluster import output_lock
from sppo_megatron.cluster.output_lock import LOCK_FILE, TAKING, OutputLock, Owner, locked_output
from sppo_megatron.errors import ConfigError, TrainingError

HOLDER = """
import sys, time
from pathlib import Path
from sppo_megatron.cluster.output_lock import locked_output
with locked_output(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_lock, "BEAT_S", 0.1)
    monkeypatch.setattr(output_lock, "STALE_S", 0.6)


def leave_lock(folder: Path, owner: Owner, age: float = 0.0) -> Path:
    path = folder / LOCK_FILE
    path.write_text(json.dumps(asdict(owner)))
    os.utime(path, (time.time() - age,) * 2)
    return path


def elsewhere() -> Owner:
    return replace(Owner.this_process(), host="node-7", pid=4711, machine="another boot")


def test_held_within_and_gone_afterwards(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with locked_output(folder) as lock:
        first_beat = (folder / LOCK_FILE).stat().st_mtime_ns
        (folder / "metrics.jsonl").write_text("")
        time.sleep(0.3)
        assert (folder / LOCK_FILE).stat().st_mtime_ns > first_beat
        lock.check()
    assert [path.name for path in folder.iterdir()] == ["metrics.jsonl"]


def test_a_folder_made_for_nothing_goes_again(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such model"), locked_output(tmp_path / "run"):
        raise ConfigError("no such model")
    assert not (tmp_path / "run").exists()


def test_a_living_process_is_named_and_a_killed_one_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=rf"in use by process {holder.pid} on {os.uname().nodename}, started"):
            OutputLock(tmp_path).acquire()
        holder.kill()
    with locked_output(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert f"from process {holder.pid} on" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_process_id_used_again_is_another_process(tmp_path: Path) -> None:
    leave_lock(tmp_path, replace(Owner.this_process(), started=1.0))
    with locked_output(tmp_path):
        pass


def test_another_host_that_beats_is_respected(tmp_path: Path) -> None:
    path, ended = leave_lock(tmp_path, elsewhere()), threading.Event()

    def beat() -> None:
        while not ended.wait(0.05):
            os.utime(path)

    beating = threading.Thread(target=beat)
    beating.start()
    with pytest.raises(ConfigError, match=r"in use by process 4711 on node-7"):
        OutputLock(tmp_path).acquire()
    ended.set()
    beating.join()
    assert json.loads(path.read_text())["pid"] == 4711


@pytest.mark.parametrize("age", [0.0, 3600.0], ids=["just-killed", "long-dead"])
def test_another_host_that_is_silent_is_replaced(tmp_path: Path, age: float) -> None:
    """As when torchrun restarts a job whose first node was lost: its own lock must not refuse it."""
    leave_lock(tmp_path, elsewhere(), age)
    started = time.monotonic()
    with locked_output(tmp_path):
        assert (time.monotonic() - started > 0.5) == (age == 0.0)


def test_an_unreadable_lock_is_judged_by_its_heartbeat(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text("")
    with locked_output(tmp_path):
        pass


def test_who_lost_the_lock_stops(tmp_path: Path) -> None:
    with locked_output(tmp_path) as lock:
        path = leave_lock(tmp_path, elsewhere())
        with pytest.raises(TrainingError, match="taken over by process 4711 on node-7"):
            lock.check()
    assert path.exists()  # the other job's


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be written"):
        OutputLock(tmp_path / "file" / "run").acquire()


@pytest.mark.parametrize("attempt", range(25))
def test_of_many_at_once_one_gets_it(attempt: int, tmp_path: Path) -> None:
    leave_lock(tmp_path, elsewhere(), age=3600.0)
    holders, refused = [], []

    def take() -> None:
        lock = OutputLock(tmp_path)
        try:
            lock.acquire()
            holders.append(lock)
        except ConfigError as error:
            refused.append(error)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(holders) == 1 and len(refused) == 7
    holders[0].release()
    assert not list(tmp_path.iterdir())


def test_a_job_that_died_while_it_took_over_is_no_obstacle(tmp_path: Path) -> None:
    leave_lock(tmp_path, elsewhere(), age=3600.0)
    taking = tmp_path / TAKING
    taking.touch()
    os.utime(taking, (0, 0))
    lock = OutputLock(tmp_path)
    lock.acquire()
    lock.check()
    assert not taking.exists()
    lock.release()
