"""subprocess.Popen and subprocess.run for this project's commands, whose processes start without waiting for imports.

Each is forked from a server that has imported everything (server.py), and becomes a child of this very process:
its id, signals, exit code, pipes and process group are those of a process that was started by its command line. Only
the interpreter's own start and the imports are left out; tests that are about these use `subprocess` itself, and
SPPO_TEST_FORK=0 makes all of them do so.

A server serves jobs whose environment is its own, up to the variables below, which nothing reads while it is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from tests.forked.job import Job, send, socket_pair

ROOT = Path(__file__).parents[2]
FORKS = sys.platform == "linux" and os.environ.get("SPPO_TEST_FORK") != "0"
READ_WHEN_USED = (
    "COLUMNS",
    "GLOO_SOCKET_IFNAME",
    "MASTER_ADDR",
    "MASTER_PORT",
    "PWD",
    "RANK",
    "VLLM_API_KEY",
    "WORLD_SIZE",
)
READ_WHEN_USED_PREFIXES = ("PYTEST_", "SPPO_", "TORCHINDUCTOR_")
TRAINING = ("sppo_megatron.train.build", "sppo_megatron.train.command", "torch.distributed.run")
VLLM = ("tests.forked.vllm_imports",)
IN_RANK_VLLM = {"rollout=vllm", "rollout.engine=vllm"}
PR_SET_CHILD_SUBREAPER = 36


class Forked(subprocess.Popen):
    """A process that `fork`(job, its three streams or -1) has made. It is a child of this process."""

    def __init__(
        self, command: Sequence[Any], *, fork: Callable[[Job, Sequence[int]], int] | None, **options: Any
    ) -> None:
        self._fork = fork
        super().__init__(command, **options)

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *others) -> None:
        new_session, streams = others[-2], others[3:9]
        job = Job.parse(args, env, cwd, new_session) if self._fork is not None and not pass_fds else None
        if job is None:
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *others)
            return
        self.pid = self._fork(job, (streams[0], streams[3], streams[5]))
        self._child_created = True
        self._close_pipe_fds(*streams)


def start(command: Sequence[Any], *, fresh: bool = False, vllm: bool = False, **options: Any) -> subprocess.Popen:
    """subprocess.Popen(command, **options); by the command line itself if `fresh`. vllm: it will import vLLM, too."""
    modules = TRAINING + (VLLM if vllm or not IN_RANK_VLLM.isdisjoint(map(str, command)) else ())

    def fork(job: Job, streams: Sequence[int]) -> int:
        return _fork(job, streams, modules)

    one_thread = (options.get("env") or os.environ).get("OMP_NUM_THREADS") == "1"
    return Forked(command, fork=fork if FORKS and one_thread and not fresh else None, **options)


def run(
    command: Sequence[Any], timeout: float, *, fresh: bool = False, vllm: bool = False, **options: Any
) -> subprocess.CompletedProcess[str]:
    """subprocess.run with captured text, which kills all of the job, and not only its first process, at a timeout."""
    options |= {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with start(command, fresh=fresh, vllm=vllm, **options) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            kill(process)
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to every process of the job: torchrun starts each rank in a session of its own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait(timeout=60)


def _fork(job: Job, streams: Sequence[int], modules: tuple[str, ...]) -> int:
    """The id of a new child of this process that does the job."""
    fixed = {name: value for name, value in job.environment.items() if not _is_read_when_used(name)}
    control = _server(tuple(sorted(fixed.items())), modules)
    with _adopting():
        send(control, job, streams)
        answer = control.recv(8)
    assert answer, "the fork server has ended: see above for its error"
    return int.from_bytes(answer, "little")


def _is_read_when_used(name: str) -> bool:
    return name in READ_WHEN_USED or name.startswith(READ_WHEN_USED_PREFIXES)


@lru_cache(maxsize=3)  # the server of one that is left out ends
def _server(environment: tuple[tuple[str, str], ...], modules: tuple[str, ...]) -> socket.socket:
    """The connection to a server that ends with this process."""
    ours, theirs = socket_pair()
    command = [sys.executable, "-m", "tests.forked.server", str(theirs.fileno()), *modules]
    subprocess.Popen(command, cwd=ROOT, env=dict(environment), pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    theirs.close()
    return ours


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """Within, a descendant whose parent ends becomes a child of this process: that is how a server gives it away."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    assert prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
