"""One job writes into an output folder at a time: a small file in it says which one, and its heartbeat that it lives.

A heartbeat is the file's modification time, and "now" is that of a file which is written beside it: both are the file
system's clock, so the clocks of the hosts don't matter.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch.distributed as dist

from sppo_megatron.cluster.consensus import agreed
from sppo_megatron.errors import ConfigError, TrainingError

logger = logging.getLogger(__name__)

LOCK_FILE = "run.lock"
TAKING = "run.lock.taking"
BEAT_S = 5.0
STALE_S = 60.0  # a job on another host whose heartbeat is older is taken for dead


@dataclass(frozen=True)
class Owner:
    """Who holds a lock. machine: one boot of one machine and one namespace of pids."""

    token: str
    host: str
    pid: int
    started: float  # seconds since 1970: tells a process from a later one with the same id
    machine: str

    @staticmethod
    def this_process() -> Owner:
        pid = os.getpid()
        return Owner(uuid.uuid4().hex, socket.gethostname(), pid, psutil.Process(pid).create_time(), _machine())

    def is_gone(self) -> bool:
        """True if it ran on this machine and its process has ended; False if it lives or nobody here can tell."""
        if self.machine != _machine():
            return False
        try:
            process = psutil.Process(self.pid)
            return process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - self.started) > 1.0
        except psutil.NoSuchProcess:
            return True

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started))
        return f"process {self.pid} on {self.host}, started {since}"


@contextlib.contextmanager
def locked_output(folder: Path) -> Iterator[OutputLock]:
    """Holds the lock of an output folder for the whole job. Collective: rank 0 takes it, all are refused together.

    Raises ConfigError, naming host and process, if another job holds it.
    """
    is_first = not dist.is_initialized() or dist.get_rank() == 0
    lock = OutputLock(folder)
    agreed(lambda: lock.acquire() if is_first else None)
    try:
        yield lock
    finally:
        lock.release()


class OutputLock:
    """The lock file of one folder; nothing is held before `acquire`."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._path = folder / LOCK_FILE
        self._owner: Owner | None = None
        self._made_folder = False
        self._released = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)

    def acquire(self) -> None:
        """Takes the lock, also from a job that is dead. That takes up to STALE_S seconds if it ran on another host.

        So a job that torchrun restarts on another node isn't refused by the lock of its own killed attempt.
        Raises ConfigError if its owner lives.
        """
        try:
            self._made_folder = not self._folder.exists()
            self._folder.mkdir(parents=True, exist_ok=True)
            owner = Owner.this_process()
            while not self._create(owner):
                self._wait_for_death()
        except OSError as error:
            raise ConfigError(f"output_dir={self._folder} can't be written: {error}") from error
        self._owner = owner
        self._beating.start()

    def check(self) -> None:
        """Raises TrainingError if another job has taken the lock over, as it may if this one didn't run for a while."""
        if self._owner is not None and (holder := self._read()) != self._owner:
            raise TrainingError(
                f"output_dir={self._folder} was taken over by {holder or 'another job'} while this job stood still: "
                "nothing more is written into it"
            )

    def release(self) -> None:
        """Removes the lock file, and a folder that holds nothing else and was made for it."""
        if self._owner is None:
            return
        self._released.set()
        self._beating.join()
        with contextlib.suppress(OSError):
            if self._read() == self._owner:
                self._path.unlink()
            if self._made_folder:
                self._folder.rmdir()  # only if it is empty
        self._owner = None

    def _create(self, owner: Owner) -> bool:
        try:
            descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps(asdict(owner)))
        return True

    def _wait_for_death(self) -> None:
        """Returns when a dead owner's file is out of the way. Raises ConfigError as soon as a sign of life is seen."""
        owner, last_beat = self._read(), self._last_beat()
        while last_beat is not None and not (owner is not None and owner.is_gone()):
            if self._now() - last_beat > STALE_S:
                break
            known_alive = owner is not None and owner.machine == _machine()
            if known_alive or self._last_beat() != last_beat:
                raise ConfigError(
                    f"output_dir={self._folder} is in use by {owner or 'another job'}: wait for its end, or give "
                    f"another output_dir (if that job is gone for certain, delete {self._path})"
                )
            logger.warning("%s was left by %s: waiting whether it still lives", self._path, owner or "another job")
            time.sleep(1.5 * BEAT_S)
        if last_beat is not None:
            self._remove(owner, last_beat)

    def _remove(self, owner: Owner | None, last_beat: float) -> None:
        """Removes the lock of a dead owner, unless another job was faster.

        A lock of somebody else is removed only by who has the file TAKING, so what is there can't change meanwhile.
        """
        taking = self._path.with_name(TAKING)
        try:
            os.close(os.open(taking, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                if self._now() - taking.stat().st_mtime > STALE_S:  # of a job that died just then
                    taking.unlink()
            time.sleep(0.05)
            return
        try:
            if self._read() == owner and self._last_beat() == last_beat:
                self._path.unlink()
                logger.warning("taking over output_dir=%s from %s, which is gone", self._folder, owner or "another job")
        finally:
            taking.unlink()

    def _read(self) -> Owner | None:
        return _parse(self._path)

    def _last_beat(self) -> float | None:
        """None if there is no lock file any more."""
        try:
            return self._path.stat().st_mtime
        except FileNotFoundError:
            return None

    def _now(self) -> float:
        probe = self._path.with_name(f"{LOCK_FILE}.{uuid.uuid4().hex}")
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink()

    def _beat(self) -> None:
        while not self._released.wait(BEAT_S):
            with contextlib.suppress(OSError):  # a file server may be away for a moment
                os.utime(self._path)


def _parse(path: Path) -> Owner | None:
    """None if the file can't be read: it is gone, or being written."""
    try:
        return Owner(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # no Linux
        return socket.gethostname()
