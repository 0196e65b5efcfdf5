"""Where metrics go besides metrics.jsonl."""

from __future__ import annotations

from dataclasses import dataclass

from sppo_megatron.config.keys import Free


@dataclass
class LoggerConfig:
    """Where metrics go besides output_dir/metrics.jsonl."""

    progress: Free[bool] = True
    "Show progress on the terminal."
    tensorboard: Free[bool] = True
    "Write TensorBoard's events to output_dir/tensorboard."
    wandb_project: Free[str | None] = None
    "Weights & Biases project; null = off."
    wandb_name: Free[str | None] = None
    "Name of the run there; null = chosen by Weights & Biases."
