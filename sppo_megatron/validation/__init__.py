"""Every check of a configuration that needs no model and no process group. One error names all that is wrong."""

from __future__ import annotations

from sppo_megatron.config import Config
from sppo_megatron.validation.objective import check_objective
from sppo_megatron.validation.optimizer import check_optimizer, check_overlap
from sppo_megatron.validation.parallelism import check_layout, check_processes, find_process_problems
from sppo_megatron.validation.precision import check_precision
from sppo_megatron.validation.report import raise_problems
from sppo_megatron.validation.reward import check_reward
from sppo_megatron.validation.rollout import check_engine_processes, check_rollout
from sppo_megatron.validation.values import PAIRWISE_KINDS, check_values

__all__ = ["PAIRWISE_KINDS", "check_config", "check_layout", "check_processes"]


def check_config(config: Config, world_size: int) -> None:
    """Raises ConfigError listing every problem of the configuration for a job of world_size processes."""
    raise_problems(
        [
            *check_values(config),
            *check_objective(config),
            *check_rollout(config),
            *check_reward(config),
            *check_engine_processes(config, world_size),
            *check_optimizer(config),
            *find_process_problems(config.parallelism, world_size),
            *check_overlap(config),
            *check_precision(config),
        ]
    )
