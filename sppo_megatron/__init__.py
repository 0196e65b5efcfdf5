"""Self-Play Preference Optimization on Megatron-Core. The objective below needs torch alone."""

from sppo_megatron.objective import compute_sppo_loss

__version__ = "0.1.0"

__all__ = ["__version__", "compute_sppo_loss"]
