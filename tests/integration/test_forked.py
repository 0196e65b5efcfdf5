"""A forked process is what its command line would have started: held against the very same command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.forked import processes

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
TELL = """
import json, logging, os, random, signal, sys, threading
print(json.dumps({
    "argv": sys.argv[1:], "name": __name__, "path": sys.path[0], "cwd": os.getcwd(),
    "environment": {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "LC_"))},
    "parent": os.getppid() == int(os.environ.get("SPPO_PARENT", os.getppid())), "input": sys.stdin.read(),
    "signals": [str(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
    "threads": threading.active_count(), "handlers": len(logging.getLogger().handlers),
}), flush=True)
"""
END = """
import atexit, sys, threading, time
atexit.register(print, "atexit")
threading.Timer(0.1, print, ["thread"]).start()
how = sys.argv[1]
if how == "error":
    raise KeyError(how)
sys.exit({"message": "a message", "none": None, "number": 7}[how])
"""
RANK = """
import os, sys
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([dist.get_rank() + 1])
dist.all_reduce(total)
sys.stdout.write(f"rank {os.environ['RANK']} of {dist.get_world_size()} sum {total.item()} {sys.argv[1:]}\\n")
dist.destroy_process_group()
sys.exit(5 if sys.argv[1] == "fail" and os.environ["RANK"] == "1" else 0)
"""
SLEEP = "import subprocess, sys; print('up', flush=True); subprocess.run(['sleep', '600'])"


def both(*command: object, cwd: Path, **environment: str) -> list[subprocess.CompletedProcess[str]]:
    """The same command started and forked."""
    options = {"env": ENVIRONMENT | {"SPPO_PARENT": str(os.getpid())} | environment, "cwd": cwd}
    return [processes.run([sys.executable, *map(str, command)], 120, fresh=fresh, **options) for fresh in (True, False)]


@pytest.mark.parametrize("kind", ["-c", "-m", "file"])
def test_sees_the_same(tmp_path: Path, kind: str) -> None:
    (tmp_path / "tell.py").write_text(TELL)
    start = {"-c": ["-c", TELL], "-m": ["-m", "tell"], "file": [tmp_path / "tell.py"]}[kind]
    started, forked = both(*start, "one", "--two=3", cwd=tmp_path, SPPO_MARK="x")
    assert json.loads(forked.stdout) == json.loads(started.stdout)
    assert json.loads(forked.stdout)["parent"] and json.loads(forked.stdout)["environment"]["SPPO_MARK"] == "x"


@pytest.mark.parametrize("how", ["message", "none", "number", "error"])
def test_ends_the_same(tmp_path: Path, how: str) -> None:
    started, forked = both("-c", END, how, cwd=tmp_path)
    assert (forked.returncode, forked.stdout) == (started.returncode, started.stdout)
    assert forked.returncode == {"message": 1, "none": 0, "number": 7, "error": 1}[how]
    assert forked.stdout.split() == ["thread", "atexit"]
    assert forked.stderr.splitlines()[-1:] == started.stderr.splitlines()[-1:]


@pytest.mark.parametrize("how", ["succeed", "fail"])
def test_torchrun(tmp_path: Path, how: str) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    started, forked = both(*launcher, tmp_path / "rank.py", how, cwd=tmp_path)
    assert sorted(forked.stdout.splitlines()) == sorted(started.stdout.splitlines()) != []
    assert forked.returncode == started.returncode == (0 if how == "succeed" else 1)
    for done in (started, forked):
        assert ("exitcode  : 5" in done.stderr) == (how == "fail"), done.stderr


def test_is_killed_with_its_group(tmp_path: Path) -> None:
    process = processes.start(
        [sys.executable, "-c", SLEEP], env=ENVIRONMENT, cwd=tmp_path, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == b"up\n"
    assert os.getpgid(process.pid) == os.getsid(process.pid) == process.pid
    assert process.pid in {child.pid for child in psutil.Process().children()}
    while not (children := psutil.Process(process.pid).children()):
        pass
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert psutil.wait_procs(children, timeout=60)[1] == []
    process.stdout.close()


def test_another_environment_has_another_server(tmp_path: Path) -> None:
    """What may be read at import is never another's."""
    code = "import huggingface_hub.constants as constants; print(constants.HF_HUB_OFFLINE)"
    started, forked = both("-c", code, cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert forked.stdout == started.stdout == "True\n"


def test_more_threads_are_started_anew(tmp_path: Path) -> None:
    """A process that has threads can't be forked."""
    started, forked = both("-c", "import torch; print(torch.get_num_threads())", cwd=tmp_path, OMP_NUM_THREADS="2")
    assert forked.stdout == started.stdout == "2\n"
