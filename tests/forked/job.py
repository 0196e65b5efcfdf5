"""What a forked process shall be, and its way to the process that forks it."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

LAUNCHER = "torch.distributed.run"
RANKS = "--nproc-per-node"


@dataclass
class Job:
    """kind: -m, -c or "" for a file. arguments: the module, the code or the file, and what follows it."""

    kind: str
    arguments: list[str]
    unbuffered: bool
    environment: dict[str, str]
    cwd: str
    new_session: bool

    @classmethod
    def parse(
        cls, command: Sequence[str], environment: Mapping[str, str] | None, cwd: object | None, new_session: bool
    ) -> Job | None:
        """The job of a command line; None if that isn't of this very interpreter, without options but -u."""
        program, *arguments = map(os.fspath, command)
        if program != sys.executable or not arguments:
            return None
        unbuffered = arguments[0] == "-u"
        arguments = arguments[unbuffered:]
        kind = arguments.pop(0) if arguments[0] in ("-m", "-c") else ""
        if kind != "-c" and arguments[0].startswith("-"):
            return None
        environment = dict(os.environ if environment is None else environment)
        return cls(kind, arguments, unbuffered, environment, os.path.abspath(cwd or os.getcwd()), new_session)

    def ranks(self) -> int:
        """How many ranks this torchrun starts; 0 of any other command."""
        if (self.kind, self.arguments[0]) != ("-m", LAUNCHER):
            return 0
        for option, value in zip(self.arguments, [*self.arguments[1:], ""], strict=True):
            if option.startswith(RANKS):
                return int(option.partition("=")[2] or value)
        return 1


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Ends of a connection that keeps messages apart, each as long as any command line with its environment."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    return pair


def send(control: socket.socket, job: Job, streams: Sequence[int]) -> None:
    """streams: its standard input, output and error, or -1 for this process's own."""
    numbers = [own if stream == -1 else stream for own, stream in enumerate(streams)]
    socket.send_fds(control, [json.dumps(asdict(job)).encode()], numbers)


def receive(control: socket.socket) -> tuple[Job, list[int]] | None:
    """The next job and its streams; None if the other end is closed."""
    message, streams, _, _ = socket.recv_fds(control, 1 << 20, 3)
    return (Job(**json.loads(message)), streams) if message else None
