"""Every check of a configuration that needs no model and no process group. One error names all that is wrong."""

from __future__ import annotations

from collections.abc import Iterable

from sppo_megatron.config import Config
from sppo_megatron.config.checks.data import check_data
from sppo_megatron.config.checks.objective import check_objective
from sppo_megatron.config.checks.optimizer import check_optimizer, check_overlap
from sppo_megatron.config.checks.parallelism import check_layout, check_processes, find_process_problems
from sppo_megatron.config.checks.precision import check_precision
from sppo_megatron.config.checks.report import raise_problems
from sppo_megatron.config.checks.reward import check_reward, check_scorer
from sppo_megatron.config.checks.rollout import check_rollout
from sppo_megatron.config.checks.values import PAIRWISE_KINDS, check_values

__all__ = ["PAIRWISE_KINDS", "check_config", "check_generation", "check_layout", "check_processes", "check_scoring"]


def check_config(config: Config, world_size: int, *, generates: bool, more: Iterable[str]) -> None:
    """Raises ConfigError listing every problem of the configuration for a job of world_size processes.

    generates: whether responses are sampled; False if stored ones are read. more: problems that others found, who know
    the engines (`sppo_megatron.rollout.registry.check_run`).
    """
    raise_problems(
        [
            *check_values(config),
            *check_objective(config, generates),
            *more,
            *check_rollout(config, generates),
            *check_data(config),
            *check_reward(config, generates),
            *check_optimizer(config),
            *find_process_problems(config.parallelism, world_size),
            *check_overlap(config),
            *check_precision(config),
        ]
    )


def check_generation(config: Config, world_size: int, *, more: Iterable[str]) -> None:
    """As `check_config`, of what generating alone reads."""
    raise_problems(
        [
            *check_values(config),
            *more,
            *check_rollout(config, generates=True),
            *check_data(config),
            *find_process_problems(config.parallelism, world_size),
            *check_precision(config),
        ]
    )


def check_scoring(config: Config) -> None:
    """As `check_config`, of what scoring alone reads."""
    raise_problems([*check_values(config), *check_scorer(config.reward)])
