"""Shared memory of vLLM's tensor parallelism on CPU: every engine has its own, and a killed run leaves none behind.

vLLM names it after its rendezvous address. For engines in the ranks that is `env://` in every run: two runs on one
machine would meet in one piece of memory, and what a killed run has left would stop the next (errno 17).
"""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path
from typing import ClassVar

from vllm.distributed.device_communicators import cpu_communicator

from sppo_megatron.cluster.consensus import of_first_rank

_FOLDER = Path("/dev/shm")


class OwnSharedMemory(cpu_communicator._CPUSHMDistributed):
    """vLLM's, under a name that holds `identity` and goes as soon as every rank has the memory open."""

    identity: ClassVar[str] = ""

    @staticmethod
    def make_group_name(communicator: cpu_communicator.CpuCommunicator) -> str:
        ranks = "-".join(map(str, communicator.ranks))
        return f"sppo-{OwnSharedMemory.identity}-{communicator.unique_name.replace(':', '-')}-{ranks}"

    def _init_cpu_shm(self) -> int:
        handle = super()._init_cpu_shm()
        with contextlib.suppress(FileNotFoundError):
            (_FOLDER / f"{self.group_name}_{self.communicator.rank}").unlink()
        return handle


def separate_shared_memory() -> None:
    """The engine that is built next gets names that no other engine has. Collective over the default group."""
    OwnSharedMemory.identity = of_first_rank(uuid.uuid4().hex)
    cpu_communicator._CPUSHMDistributed = OwnSharedMemory  # type: ignore[misc]
