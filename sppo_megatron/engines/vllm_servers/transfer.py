"""What an engine of servers needs of a way to bring weights to them, and which servers there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from sppo_megatron.cluster.server_pool import Pool
from sppo_megatron.engines.fingerprint import Fingerprint, find_difference
from sppo_megatron.engines.vllm_servers.client import ServerClient

ServerPool = Pool[ServerClient]


class Transfer(Protocol):
    """A way to bring weights to the servers of a pool."""

    def send(self, weights: Iterator[tuple[str, Tensor]], version: int) -> Fingerprint:
        """Gives every server the weights; returns what was sent. Collective; see Engine.load_weights.

        Servers that fail are taken out of the pool; those that answer again come back with these weights. Raises
        TrainingError, the same on every rank, if no server took them.
        """
        ...

    def close(self) -> None:
        """Ends connections and removes what was written for the servers. They keep their weights."""
        ...


def no_server_took(problems: Mapping[str, str | None]) -> str:
    """The message if that is so. problems: by URL."""
    return "no rollout server took the policy's weights: " + "; ".join(f"{url}: {p}" for url, p in problems.items())


def worker_problem(reports: Sequence[Mapping[str, Any] | None], version: int, sent: Fingerprint) -> str | None:
    """The first worker of a server that has other weights than were sent; None if all have them."""
    differences = [find_difference(report, version, sent) for report in reports]
    return next((f"worker {i}: {text}" for i, text in enumerate(differences) if text is not None), None)
