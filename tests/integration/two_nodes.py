"""Two nodes on one machine: each has a network and a host name of its own, and a cable (veth pair) joins them.

Needs root, iproute2 and util-linux. A namespace lives as long as a process in it, so that nothing is left behind.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.integration import tiny_task

PORT = 29500  # every node has all ports to itself
LIFETIME = 900  # seconds after which a node ends in any case
INTERFACE = "cable"
RANK_COMMAND = ["-u", "-m", "sppo_megatron.train"]  # after the interpreter, as torchrun starts it
WITH_ITS_PARENT = ["setpriv", "--pdeathsig=KILL"]  # ends even if the tests are killed
# Rank 0's node publishes the address of a new store in each round, without which no lost node could be replaced.
C10D_ENVIRONMENT = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


@dataclass
class Node:
    """rank: 0 or 1. holder: the process that keeps the namespaces. jobs: what was started, ended with the node."""

    rank: int
    holder: subprocess.Popen
    jobs: list[Job] = field(default_factory=list)

    @property
    def host(self) -> str:
        return f"node-{self.rank}"

    @property
    def address(self) -> str:
        return f"10.77.0.{self.rank + 1}"

    def enter(self) -> list[str]:
        return ["nsenter", f"--target={self.holder.pid}", "--net", "--uts"]

    def ip(self, *arguments: str) -> None:
        call([*self.enter(), "ip", *arguments])

    def cut(self) -> None:
        """Pulls the cable out."""
        self.ip("link", "set", INTERFACE, "down")

    def start(self, launcher: Sequence[str], overrides: Sequence[str], log: Path, **environment: str) -> Job:
        """`torchrun LAUNCHER -m sppo_megatron.train OVERRIDES`, one rank; run in the folder of `log`, its output."""
        processes = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", *launcher]
        with log.open("w") as file:
            process = subprocess.Popen(
                [*WITH_ITS_PARENT, *self.enter(), *processes, *torchrun, "-m", "sppo_megatron.train", *overrides],
                env=tiny_task.environment() | {"GLOO_SOCKET_IFNAME": INTERFACE} | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
            )
        self.jobs.append(Job(process, log))
        return self.jobs[-1]


@dataclass
class Job:
    """One node's launcher with its rank, in a process namespace of their own: they end together."""

    process: subprocess.Popen
    log: Path

    def kill(self) -> None:
        """SIGKILL to every process of the job at once."""
        self.process.kill()
        self.process.wait(timeout=60)

    def rank(self) -> psutil.Process:
        """The training process."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        (rank,) = [child for child in children if child.cmdline()[1:4] == RANK_COMMAND]
        return rank


def static_rendezvous(node: Node) -> list[str]:
    return [f"--node-rank={node.rank}", "--master-addr=10.77.0.1", f"--master-port={PORT}"]


def c10d_rendezvous(node: Node) -> list[str]:
    """With `is_host`, as the address that node 0 is known by isn't that of its host name."""
    return [
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=10.77.0.1:{PORT}",
        "--rdzv-id=tiny",
        f"--rdzv-conf=is_host={1 - node.rank}",
        f"--local-addr={node.address}",
    ]


@contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """Raises RuntimeError if such nodes can't be made. At the end no process and no namespace is left."""
    nodes: list[Node] = []
    try:
        nodes.append(make_node(0))
        nodes.append(make_node(1))
        join(*nodes)
        yield nodes[0], nodes[1]
    finally:
        for node in nodes:
            for job in node.jobs:
                job.kill()
            node.holder.kill()
            node.holder.wait(timeout=60)


def make_node(rank: int) -> Node:
    missing = [tool for tool in ("ip", "nsenter", "setpriv", "unshare") if shutil.which(tool) is None]
    if missing:
        raise RuntimeError(f"{', '.join(missing)} not installed")
    script = 'hostname "$0" && echo ready && exec sleep "$1"'
    holder = subprocess.Popen(
        [*WITH_ITS_PARENT, "unshare", "--net", "--uts", "sh", "-c", script, f"node-{rank}", str(LIFETIME)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert holder.stdout is not None
    answer = holder.stdout.readline().strip()
    node = Node(rank, holder)
    if answer != "ready":
        holder.wait(timeout=60)
        raise RuntimeError(answer)
    return node


def join(first: Node, second: Node) -> None:
    ends = ["netns", str(first.holder.pid), "type", "veth", "peer", "name", INTERFACE, "netns", str(second.holder.pid)]
    call(["ip", "link", "add", "name", INTERFACE, *ends])
    for node in (first, second):
        node.ip("address", "add", f"{node.address}/24", "dev", INTERFACE)
        node.ip("link", "set", INTERFACE, "up")
        node.ip("link", "set", "lo", "up")


def call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
