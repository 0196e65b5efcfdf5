"""A run's checkpoint as a model in Hugging Face format, for as long as it is needed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist
import yaml

from sppo_megatron.cli.conversion import open_stored, write_hf
from sppo_megatron.cluster.consensus import decided_by_first_rank
from sppo_megatron.config import Config
from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.hf_model import open_hf_model
from sppo_megatron.policy.checkpoint.folder import MANIFEST, check_whole
from sppo_megatron.policy.checkpoint.training import WEIGHTS
from sppo_megatron.rollout.registry import engine_kind


@contextlib.contextmanager
def in_hf_format(config: Config, scratch: Path) -> Iterator[Config]:
    """The configuration with model.hf_path in Hugging Face format. Collective.

    A checkpoint is converted into `scratch`, which every rank sees and which goes with the block; a folder in Hugging
    Face format is itself. Raises ConfigError if a checkpoint is broken, or its run can't be found or is of servers.
    """
    path = Path(config.model.hf_path)
    if not (path / MANIFEST).exists():
        yield config
        return
    if not engine_kind(config).in_ranks:
        raise ConfigError(
            f"model.hf_path={path} is a checkpoint, and the servers of rollout.engine={config.rollout.engine} have "
            "their own model: choose another engine, or convert it (sppo convert --to hf) and let them serve that"
        )
    decided_by_first_rank(lambda: _convert(path, scratch))
    try:
        yield replace(config, model=replace(config.model, hf_path=str(scratch)))
    finally:
        if dist.get_rank() == 0:
            shutil.rmtree(scratch, ignore_errors=True)


def _convert(checkpoint: Path, folder: Path) -> None:
    check_whole(checkpoint)
    written = checkpoint.resolve().parents[1] / "config.yaml"
    try:
        start = yaml.safe_load(written.read_text(encoding="utf-8"))["model"]["hf_path"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{checkpoint} lies in no run's output_dir, whose config.yaml says what model it began with: give the "
            f"folder that `sppo convert --to hf --megatron-path {checkpoint / WEIGHTS} --hf-path START` writes"
        ) from error
    model = open_hf_model(start)
    write_hf(model, open_stored(model, checkpoint / WEIGHTS), folder)
