"""Where a model comes from: what Megatron-Core builds, and how the weights come in and go out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from sppo_megatron.config import Config


class ModelSource(Protocol):
    """A model in Hugging Face format, for Megatron-Core: by our own mapping (`mapped_model`), or by megatron-bridge
    (`bridge_model`). chunks: this pipeline stage's, wrapped or not."""

    @property
    def vocab_size(self) -> int:
        """The true size, without padding."""
        ...

    @property
    def longest_sequence(self) -> int | None:
        """Tokens beyond which the model would not be transformers'; None without an end."""
        ...

    def layout_sizes(self) -> dict[str, int | None]:
        """What parallel sizes must divide: the arguments of `validation.check_layout`."""
        ...

    def description(self) -> dict[str, Any]:
        """What makes it this model and no other, as JSON values: a checkpoint of it must agree."""
        ...

    def build(self, run: Config, groups: ProcessGroupCollection) -> tuple[TransformerConfig, list[nn.Module]]:
        """This pipeline stage's chunks, with uninitialized weights. Raises ValueError for what can't be had."""
        ...

    def load_weights(self, chunks: list[nn.Module], groups: ProcessGroupCollection) -> None:
        """Fills the chunks. Raises ValueError that names what is missing, unexpected or of a wrong shape."""
        ...

    def export_weights(self, chunks: list[nn.Module], groups: ProcessGroupCollection) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors by Hugging Face names, each the caller's own, the same on every rank. Every rank iterates to
        the end."""
        ...
