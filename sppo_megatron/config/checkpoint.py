"""Checkpoints of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sppo_megatron.config.keys import AtLeastOne, Free, UserPath


@dataclass
class CheckpointConfig:
    """Checkpoints under output_dir/checkpoints."""

    save_interval: Free[AtLeastOne[int] | None] = None
    "Optimizer steps between checkpoints; null = only at the end."
    load: Free[UserPath | None] = None
    "What to continue from: latest = the newest of output_dir, or a checkpoint's folder; null = a new run."
    keep_last: Free[AtLeastOne[int]] = 2
    "How many of the latest stay."
    keep_best: Free[str | None] = "auto"
    """Metric of the evaluation; whenever it is the highest so far, a checkpoint is saved, stays, and is linked as
    checkpoints/best. auto = eval_reward_mean; null = none is kept."""
    async_save: Free[bool] = False
    "Write while training goes on."
    reshardable: Free[bool] = False
    """Save every checkpoint so that it loads in every layout, for which each data-parallel rank gathers the optimizer
    of its part of the model. false = only the run's last one; those before are written several times faster, load where
    TP, PP and EP are the same, and become such checkpoints by `sppo reshard`."""


def check_checkpoint(checkpoint: CheckpointConfig) -> Iterator[str]:
    if checkpoint.load not in (None, "latest") and not Path(checkpoint.load).is_dir():
        yield f"checkpoint.load={checkpoint.load} is neither null, latest nor a folder"
