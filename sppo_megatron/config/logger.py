"""Where metrics go besides metrics.jsonl."""

from __future__ import annotations

from dataclasses import dataclass

from sppo_megatron.config.keys import Free, NotNegative


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
    mlflow_experiment: Free[str | None] = None
    "MLflow experiment; null = off. Without MLFLOW_TRACKING_URI in the environment: output_dir/mlflow, and no server."
    trackio_project: Free[str | None] = None
    "Trackio project; null = off."
    swanlab_project: Free[str | None] = None
    "SwanLab project; null = off."
    rollout_rows: Free[NotNegative[int]] = 0
    "Responses of each iteration that are shown in a table there; 0 = no table."
