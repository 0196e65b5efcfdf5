"""Embeddings that are scaled (Gemma)."""

from __future__ import annotations

from torch import Tensor, nn


def scale_embeddings(embedding: nn.Module, scale: float) -> None:
    """What the embedding returns is multiplied by the scale, rounded to its dtype as transformers does."""

    def scaled(module: nn.Module, arguments: tuple, output: Tensor) -> Tensor:
        return output * output.new_tensor(scale)

    embedding.register_forward_hook(scaled)
