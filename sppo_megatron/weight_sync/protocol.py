"""How the trainer's new weights get to the rollout engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor


class WeightSync(Protocol):
    """version: that of the weights the engine samples from, -1 before the first push. It never goes back."""

    version: int

    def push(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        """Gives the engine the policy's weights; when it returns, the next sample comes from them.

        weights: (Hugging Face name, full tensor) one at a time, in the policy's dtype, so that a model never exists
        twice. Iterating runs collectives: every rank calls push, and all iterate to the end or none starts.
        Raises ValueError if the version is older than the one before.
        """
        ...
