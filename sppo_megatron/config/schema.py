"""Everything one run needs: every group and its keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

from sppo_megatron.config.checkpoint import CheckpointConfig
from sppo_megatron.config.data import DataConfig
from sppo_megatron.config.eval import EvalConfig
from sppo_megatron.config.keys import Free, Key, UserPath, keys_of
from sppo_megatron.config.logger import LoggerConfig
from sppo_megatron.config.model import ModelConfig
from sppo_megatron.config.objective import ObjectiveConfig
from sppo_megatron.config.optimizer import OptimizerConfig
from sppo_megatron.config.parallelism import ParallelismConfig
from sppo_megatron.config.precision import PrecisionConfig
from sppo_megatron.config.profiler import ProfilerConfig
from sppo_megatron.config.reward import RewardConfig
from sppo_megatron.config.rollout import RolloutConfig
from sppo_megatron.config.train import TrainConfig


@dataclass
class Config:
    """Everything one run needs; what `configs/config.yaml` composes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    parallelism: ParallelismConfig = field(default_factory=ParallelismConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    profiler: ProfilerConfig = field(default_factory=ProfilerConfig)
    output_dir: Free[UserPath] = "outputs/run"
    "Where everything that the run writes goes."


@cache
def all_keys() -> dict[str, Key]:
    """Every key by its dotted name. `all_keys()[name].resume` says what a change does to a run that continues."""
    return {key.name: key for key in keys_of(Config)}
