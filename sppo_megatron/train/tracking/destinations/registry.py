"""Every destination. Light: none of their packages is imported before it is started."""

from __future__ import annotations

from sppo_megatron.train.tracking.destinations.base import DestinationKind
from sppo_megatron.train.tracking.destinations.mlflow import MLFLOW
from sppo_megatron.train.tracking.destinations.swanlab import SWANLAB
from sppo_megatron.train.tracking.destinations.tensorboard import TENSORBOARD
from sppo_megatron.train.tracking.destinations.trackio import TRACKIO
from sppo_megatron.train.tracking.destinations.wandb import WANDB

DESTINATIONS: tuple[DestinationKind, ...] = (WANDB, MLFLOW, TRACKIO, SWANLAB, TENSORBOARD)
