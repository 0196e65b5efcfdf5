"""Every check of a configuration that needs no model and no process group. One error names all that is wrong."""

from __future__ import annotations

from collections.abc import Iterable

from sppo_megatron.config.checkpoint import check_checkpoint
from sppo_megatron.config.data import check_data
from sppo_megatron.config.eval import check_held_out
from sppo_megatron.config.objective import check_objective
from sppo_megatron.config.optimizer import check_optimizer, check_overlap
from sppo_megatron.config.parallelism import find_process_problems
from sppo_megatron.config.precision import check_precision
from sppo_megatron.config.profiler import check_profiler
from sppo_megatron.config.rollout import check_rollout
from sppo_megatron.config.schema import Config
from sppo_megatron.config.sources import check_sources
from sppo_megatron.config.train import check_train
from sppo_megatron.config.values import check_values
from sppo_megatron.errors import raise_problems


def check_config(config: Config, world_size: int, *, generates: bool, more: Iterable[str]) -> None:
    """Raises ConfigError listing every problem of the configuration for a job of world_size processes.

    generates: whether responses are sampled; False if stored ones are read. more: problems that others found, who know
    the engines and the rewards (`sppo_megatron.rollout.registry.check_run`).
    """
    raise_problems(check_values(config))
    raise_problems(
        [
            *check_objective(config, generates),
            *more,
            *check_rollout(config, generates),
            *check_data(config.data),
            *check_sources(config.data),
            *check_checkpoint(config.checkpoint),
            *check_profiler(config.profiler),
            *check_train(config),
            *check_optimizer(config),
            *find_process_problems(config.parallelism, world_size),
            *check_overlap(config),
            *check_precision(config),
        ]
    )


def check_evaluation(config: Config, world_size: int, *, more: Iterable[str]) -> None:
    """As `check_config`, of what evaluating a model alone reads."""
    raise_problems(check_values(config))
    raise_problems(
        [
            *more,
            *check_held_out(config),
            *check_data(config.data),
            *check_sources(config.data),
            *find_process_problems(config.parallelism, world_size),
            *check_precision(config),
        ]
    )


def check_generation(config: Config, world_size: int, *, more: Iterable[str]) -> None:
    """As `check_config`, of what generating alone reads."""
    raise_problems(check_values(config))
    raise_problems(
        [
            *more,
            *check_rollout(config, generates=True),
            *check_data(config.data),
            *check_sources(config.data),
            *check_checkpoint(config.checkpoint),
            *find_process_problems(config.parallelism, world_size),
            *check_precision(config),
        ]
    )
