"""Weight sync for engines that read the trainer's own weights: nothing moves."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from sppo_megatron.engines.version import check_version


class InProcessSync:
    """The engine samples from the very parameters the optimizer steps, so only the version is recorded."""

    def __init__(self) -> None:
        self.version = -1

    def push(self, weights: Iterator[tuple[str, Tensor]], version: int) -> int:
        """Records the version. The iterator is never started: exporting would gather every shard for nothing."""
        check_version(self.version, version)
        self.version = version
        return 0

    def close(self) -> None:
        """Nothing is held open."""
