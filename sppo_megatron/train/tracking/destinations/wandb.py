"""Weights & Biases. WANDB_MODE=offline writes to output_dir/wandb alone, for `wandb sync`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sppo_megatron.train.tracking.destinations.base import DestinationKind, Run


class WeightsAndBiases:
    def __init__(self, run: Run) -> None:
        import wandb

        self._run = wandb.init(
            project=run.config.wandb_project,
            name=run.config.wandb_name,
            id=run.known_id("wandb"),
            resume="allow",
            dir=str(run.output_dir),
            config=dict(run.settings),
        )
        # W&B's own counter can't go back on a resume; ours is an ordinary metric that every chart is drawn over.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        run.note_id("wandb", self._run.id)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers))

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        import wandb

        self._run.log({"step": step, name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def close(self) -> None:
        self._run.finish()


WANDB = DestinationKind(
    "wandb", "wandb_project", "wandb", 'pip install "sppo-megatron[wandb]", or set it to null', WeightsAndBiases
)
