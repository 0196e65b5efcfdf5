"""A process that has imported everything, from which the processes of tests are forked (see processes.py).

    python -m tests.forked.server FD MODULE ...

Imports the modules, then takes jobs from the socket FD until its other end is closed. What is forked becomes the
program that was asked for. A torchrun is the real one; each of its ranks is forked before it begins, while there is
one thread, and waits until torchrun starts it.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import multiprocessing.process
import os
import runpy
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Sequence

from tests.forked.job import Job, receive, send, socket_pair
from tests.forked.processes import Forked


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the tests, which end this process
    sys.path.pop(0)
    gc.disable()
    for module in sys.argv[2:]:
        importlib.import_module(module)
    gc.freeze()
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"{len(threads)} threads after the imports: what is forked would have but one"
    job = serve(control)
    if job is not None and job.ranks() > 0:
        job = fork_ranks(job.ranks()) or job
    if job is not None:
        end(job)


def serve(control: socket.socket) -> Job | None:
    """Forks a process for each job. Returns its job in that process, and None in this one at the end."""
    while (request := receive(control)) is not None:
        job, streams = request
        answer, named = os.pipe()
        until_adopted, adopted = os.pipe()
        middle = os.fork()
        if middle == 0:
            pid = os.fork()
            if pid > 0:
                os.write(named, pid.to_bytes(8, "little"))
                os._exit(0)
            os.close(adopted)
            os.read(until_adopted, 1)
            for descriptor in (answer, named, until_adopted, control.detach()):
                os.close(descriptor)
            become(job, streams)
            return job
        os.waitpid(middle, 0)  # from now on the new process is a child of the tests
        control.send(os.read(answer, 8))
        for descriptor in (answer, named, until_adopted, adopted, *streams):
            os.close(descriptor)
    return None


def become(job: Job, streams: Sequence[int]) -> None:
    """Makes this process like one that has just been started, but for what is imported."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    if job.new_session:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(job.cwd)
    os.environ.clear()
    os.environ.update(job.environment)
    output = io.FileIO(1, "w", closefd=False)
    output = output if job.unbuffered else io.BufferedWriter(output)
    sys.stdout = sys.__stdout__ = io.TextIOWrapper(output, encoding="utf-8", write_through=job.unbuffered)
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")
    multiprocessing.process.ORIGINAL_DIR = job.cwd
    tempfile.tempdir = None
    sys.modules["numpy"].random.seed()  # `random` does so by itself, and torch starts with the same seed everywhere
    importlib.invalidate_caches()
    gc.enable()


def fork_ranks(count: int) -> Job | None:
    """Forks processes that wait for their job. Returns it in each of them as soon as it is there, None in this one."""
    waiting: list[tuple[int, socket.socket]] = []
    for _ in range(count):
        ours, theirs = socket_pair()
        pid = os.fork()
        if pid == 0:
            for control in (ours, *(control for _, control in waiting)):
                control.close()
            request = receive(theirs)
            if request is None:
                os._exit(0)  # torchrun ended before it started ranks
            theirs.close()
            become(*request)
            return request[0]
        theirs.close()
        waiting.append((pid, ours))
    let_torchrun_start(waiting)
    return None


def let_torchrun_start(waiting: list[tuple[int, socket.socket]]) -> None:
    """Its first ranks are those that wait; what it starts after a failure are real processes."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

    def fork(job: Job, streams: Sequence[int]) -> int:
        pid, control = waiting.pop(0)
        with control:
            send(control, job, streams)
        return pid

    def popen(handler: SubprocessHandler, command: Sequence[str], environment: dict[str, str]) -> Forked:
        return Forked(
            command,
            fork=fork if waiting else None,
            env=environment,
            stdout=handler._stdout,
            stderr=handler._stderr,
            start_new_session=True,
        )

    SubprocessHandler._popen = popen


def end(job: Job) -> None:
    """Does the job, and ends the process as the interpreter does, except that what is imported isn't taken down."""
    try:
        execute(job)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def execute(job: Job) -> None:
    """Runs the job's program as `__main__`; raises what it raises, SystemExit above all."""
    program, *arguments = job.arguments
    if job.kind == "-m":
        sys.argv[:] = [program, *arguments]
        sys.path.insert(0, job.cwd)
        sys.modules.pop(program, None)  # is imported, and runs anew as the main module
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    elif job.kind == "-c":
        sys.argv[:] = ["-c", *arguments]
        sys.path.insert(0, "")
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
    else:
        sys.argv[:] = [program, *arguments]
        sys.path.insert(0, os.path.dirname(os.path.abspath(program)))
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
