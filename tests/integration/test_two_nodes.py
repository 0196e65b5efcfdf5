"""A job on two nodes: the metrics of one node, a lost node, a silent rank, a cut cable, differing commands."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration import tiny_task
from tests.integration.two_nodes import C10D_ENVIRONMENT, Job, Node, c10d_rendezvous, static_rendezvous, two_nodes

SAVE = {"checkpoint.save_interval": 2, "checkpoint.load": "latest"}
SILENCE = {"parallelism.distributed_timeout_minutes": 1, "train.iterations": 500, "eval.interval": 0}
WAIT_S = 60 + 2 * 10 + 60  # the timeout, the roll call, and slack for a machine with other work


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_task.make_task(tmp_path_factory.mktemp("nodes") / "task")


@pytest.fixture(scope="module")
def one_node(task: Path) -> list[dict]:
    output = task.parent / "one-node"
    done = tiny_task.run(tiny_task.overrides(task, output, **SAVE), ranks=2)
    assert done.returncode == 0, done.stderr[-4000:]
    return tiny_task.steps(output)


def nodes_or_skip(stack: ExitStack) -> tuple[Node, Node]:
    try:
        return stack.enter_context(two_nodes())
    except RuntimeError as reason:
        pytest.skip(f"no nodes can be made here: {reason}")


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    with ExitStack() as stack:
        yield nodes_or_skip(stack)


@pytest.fixture(scope="module", autouse=True)
def silenced(task: Path) -> Iterator[dict[str, tuple[Job, Job]]]:
    """Two jobs brought to a halt; the other tests run while these wait for their timeouts."""
    with ExitStack() as stack:
        pairs = {fault: nodes_or_skip(stack) for fault in ("stopped", "cut")}
        jobs = {}
        for fault, pair in pairs.items():
            overrides = tiny_task.overrides(task, task.parent / fault, **SILENCE)
            first, second = (
                node.start(static_rendezvous(node), overrides, folder(task, fault) / f"{node.host}.log")
                for node in pair
            )
            jobs[fault] = first, second
        for fault, (first, _) in jobs.items():
            tiny_task.wait_for_step(task.parent / fault, 2, first.process)
        jobs["stopped"][1].rank().send_signal(signal.SIGSTOP)
        pairs["cut"][1].cut()
        yield jobs


def folder(task: Path, name: str) -> Path:
    path = task.parent / f"{name}-logs"
    path.mkdir(exist_ok=True)
    return path


def message(job: Job, start: str = "training stopped:") -> str:
    """The line of a job's output that starts so, as soon as it is there."""
    deadline = time.monotonic() + WAIT_S
    while True:
        lines = [line for line in job.log.read_text().splitlines() if line.startswith(start)]
        if lines:
            (line,) = lines
            return line
        assert time.monotonic() < deadline, job.log.read_text()[-4000:]
        time.sleep(0.2)


def test_static_rendezvous_trains_as_one_node_does(task: Path, one_node: list[dict], nodes: tuple[Node, Node]) -> None:
    logs, output = folder(task, "static"), task.parent / "static"
    overrides = tiny_task.overrides(task, output, **SAVE, **{"train.iterations": 1})
    jobs = [node.start(static_rendezvous(node), overrides, logs / f"{node.host}.log") for node in nodes]
    for job in jobs:
        assert job.process.wait(timeout=240) == 0, job.log.read_text()[-4000:]
    assert tiny_task.steps(output) == one_node[:3]
    assert {path.name for path in logs.iterdir()} == {"node-0.log", "node-1.log"}, "a rank has made a folder"


def test_a_killed_node_comes_back(task: Path, one_node: list[dict], nodes: tuple[Node, Node]) -> None:
    """Killed in the second iteration. The other node's launcher waits for it, and both continue from a checkpoint.

    Nothing on the command line says so, and the new launcher has restarted nothing: each node counts its own restarts.
    """
    logs, output = folder(task, "killed"), task.parent / "killed"
    overrides = tiny_task.overrides(task, output, **{"checkpoint.save_interval": SAVE["checkpoint.save_interval"]})

    def start(node: Node, log: str) -> Job:
        launcher = [*c10d_rendezvous(node), "--max-restarts=1"]
        return node.start(launcher, overrides, logs / log, **C10D_ENVIRONMENT)

    staying, lost = (start(node, f"{node.host}.log") for node in nodes)
    tiny_task.wait_for_step(output, 5, staying.process)
    lost.kill()
    assert "on node-1: dead, stuck, or cut off" in message(staying)  # the rendezvous may give it either rank
    again = start(nodes[1], "again.log")
    for job in (staying, again):
        assert job.process.wait(timeout=240) == 0, job.log.read_text()[-4000:]
    assert tiny_task.steps(output) == one_node


def test_differing_commands_are_refused(task: Path, nodes: tuple[Node, Node]) -> None:
    logs, output = folder(task, "differing"), task.parent / "differing"
    first, _ = (
        node.start(
            static_rendezvous(node),
            tiny_task.overrides(task, output, **{"optimizer.lr": 10.0 ** -(3 + node.rank)}),
            logs / f"{node.host}.log",
        )
        for node in nodes
    )
    assert "rank 1 composed another configuration than rank 0" in message(first, "configuration error:")
    assert first.process.wait(timeout=60) != 0
    assert not output.exists()


def test_a_silent_rank_is_named(silenced: dict[str, tuple[Job, Job]]) -> None:
    first, _ = silenced["stopped"]
    assert "no answer from rank 1 on node-1: dead, stuck, or cut off" in message(first)
    assert "rank 0 on node-0 after optimizer step" in message(first)
    assert first.process.wait(timeout=60) != 0


def test_a_cut_cable_is_named_on_both_sides(silenced: dict[str, tuple[Job, Job]]) -> None:
    first, second = silenced["cut"]
    assert "no answer from rank 1 on node-1: dead, stuck, or cut off" in message(first)
    assert "no answer from the job's store at 10.77.0.1:29500" in message(second)
    for job in (first, second):
        assert job.process.wait(timeout=60) != 0
