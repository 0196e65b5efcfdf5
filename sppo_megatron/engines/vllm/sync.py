"""Weight sync for vLLM inside the training ranks: each worker takes its shards from the stream of whole tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch.distributed as dist
from torch import Tensor

from sppo_megatron.engines.fingerprint import WeightCounter
from sppo_megatron.engines.version import check_version, find_difference, raise_everywhere


class Replica(Protocol):
    """An engine on this rank that loads weights and reports what it loaded."""

    def load(self, weights: Iterator[tuple[str, Tensor]], version: int) -> dict[str, Any]: ...


class ReplicaSync:
    """Streams the weights into this rank's part of its replica. group: the ranks that push together."""

    def __init__(self, replica: Replica, group: dist.ProcessGroup | None = None) -> None:
        self.version = -1
        self._replica = replica
        self._group = group

    def push(self, weights: Iterator[tuple[str, Tensor]], version: int) -> int:
        """See WeightSync."""
        check_version(self.version, version)
        counter = WeightCounter()
        stream = counter.watch(weights)
        try:
            report = self._replica.load(stream, version)
            for _ in stream:  # the other ranks count on this one's part in the collectives
                pass
            problem = find_difference(report, version, counter.fingerprint())
        except Exception as error:
            for _ in stream:
                pass
            problem = f"{type(error).__name__}: {error}"
        rank = dist.get_rank(self._group)
        raise_everywhere({f"rank {rank}": problem} if problem else {}, self._group)
        self.version = version
        return counter.fingerprint().num_bytes

    def close(self) -> None:
        """Nothing is held open."""
