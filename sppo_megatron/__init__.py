"""SPPO at Megatron scale: the objective and the log-probs as a library, the trainer as a command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sppo_megatron.objective import compute_sppo_loss

__version__ = "0.1.0"
__all__ = ["__version__", "compute_sppo_loss"]


def __getattr__(name: str) -> Any:
    """The loss on first use: a worker process that scores rewards imports this package and should not pay for torch."""
    if name == "compute_sppo_loss":
        from sppo_megatron.objective import compute_sppo_loss

        return compute_sppo_loss
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
