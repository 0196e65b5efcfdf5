"""How the trainer's new weights get to the rollout engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor


class WeightSync(Protocol):
    """version: that of the weights the engine samples from, -1 before the first push. It never goes back."""

    version: int

    def push(self, weights: Iterator[tuple[str, Tensor]], version: int) -> int:
        """Gives the engine the policy's weights; when it returns, the next sample comes from them.

        weights: (Hugging Face name, full tensor) one at a time, in the policy's dtype, so that a model never exists
        twice. Iterating runs collectives: every rank calls push, and all iterate to the end or none starts.
        Returns the bytes that one replica received. Every replica has told the version and the checksum of what it
        loaded. Raises ValueError if the version is older than the one before, and TrainingError, the same on every
        rank, naming the replica that has other weights than were sent.
        """
        ...

    def close(self) -> None:
        """Ends connections. The engine keeps its weights."""
        ...
