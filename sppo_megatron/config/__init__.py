"""What is configured: typed groups, how they are composed, and what is checked before anything is built.

A key is declared once, in the file of its group: its type with choices and range, its default, its meaning, and what a
change does to a run that continues.
"""

from sppo_megatron.config.checkpoint import CheckpointConfig
from sppo_megatron.config.data import DataConfig
from sppo_megatron.config.eval import EvalConfig
from sppo_megatron.config.keys import MISSING, Resume
from sppo_megatron.config.logger import LoggerConfig
from sppo_megatron.config.model import ModelConfig
from sppo_megatron.config.objective import ObjectiveConfig
from sppo_megatron.config.optimizer import OptimizerConfig
from sppo_megatron.config.parallelism import ParallelismConfig
from sppo_megatron.config.precision import PrecisionConfig
from sppo_megatron.config.profiler import ProfilerConfig
from sppo_megatron.config.reward import JudgeConfig, RewardConfig, RewardModelConfig
from sppo_megatron.config.rollout import MismatchConfig, RolloutConfig, ServerConfig, VllmConfig
from sppo_megatron.config.schema import Config, all_keys
from sppo_megatron.config.train import TrainConfig

__all__ = [
    "MISSING",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "JudgeConfig",
    "LoggerConfig",
    "MismatchConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "ParallelismConfig",
    "PrecisionConfig",
    "ProfilerConfig",
    "Resume",
    "RewardConfig",
    "RewardModelConfig",
    "RolloutConfig",
    "ServerConfig",
    "TrainConfig",
    "VllmConfig",
    "all_keys",
]
