"""Runs one program with limits: `python -I code_child.py LIMITS PROGRAM`. Imports nothing of the package.

It is started in a folder of its own with an empty environment. No security boundary: the program has the rights of the
user who trains, and reads what that user may read.
"""

import ctypes
import json
import os
import resource
import runpy
import sys

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000


def leave_the_network() -> bool:
    """Whether this process is in a network of its own now, without any device but a loopback that is down."""
    libc = ctypes.CDLL(None, use_errno=True)
    return any(libc.unshare(flags) == 0 for flags in (CLONE_NEWUSER | CLONE_NEWNET, CLONE_NEWNET))


def limit(cpu_s: int, memory: int, file_bytes: int, files: int) -> None:
    """Hard limits, which the program can't raise again. memory, file_bytes: in bytes."""
    limits = {
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: files,
        resource.RLIMIT_CORE: 0,
    }
    for which, value in limits.items():
        resource.setrlimit(which, (value, value))


if __name__ == "__main__":
    limits, program = json.loads(sys.argv[1]), sys.argv[2]
    leave_the_network()
    limit(**limits)
    sys.argv = [program]
    sys.path[0] = os.getcwd()
    runpy.run_path(program, run_name="__main__")
