"""What logits are compared on."""

from __future__ import annotations

import torch


def tokens() -> torch.Tensor:
    """int64 [2, 24] below the models' vocabulary."""
    return torch.randint(37, (2, 24), generator=torch.Generator().manual_seed(1))
