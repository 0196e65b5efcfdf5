"""Rollouts, and the checkpoint to continue from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sppo_megatron.config import Config


def check_rollout(config: Config, generates: bool) -> Iterator[str]:
    """generates: whether responses are sampled; False if stored ones are read."""
    r, data, reward = config.rollout, config.data, config.reward
    if not r.temperature > 0:
        yield f"rollout.temperature={r.temperature} must be above 0: π_t is the distribution that is sampled from"
    if not 0 < r.top_p <= 1:
        yield f"rollout.top_p={r.top_p} must be in (0, 1]"
    if r.top_k == 0 or r.top_k < -1:
        yield f"rollout.top_k={r.top_k} must be -1 (off) or at least 1"
    if r.vllm.gpu_memory_utilization > 1:
        yield f"rollout.vllm.gpu_memory_utilization={r.vllm.gpu_memory_utilization} is a share: at most 1"
    if generates and data.train_path is None:
        yield f"rollout.engine={r.engine} needs data.train_path: a file or folder of prompts, or a hub id"
    elif generates and config.train.prompts_per_iteration is None:
        yield f"rollout.engine={r.engine} needs train.prompts_per_iteration"
    if generates:
        yield from _check_support(config)
    if (reward.kind in ("function", "pairwise_function")) != (reward.function is not None):
        yield (
            "reward.kind=function or pairwise_function and reward.function=module:name belong together: "
            "give both or neither"
        )
    if config.checkpoint.load not in (None, "latest") and not Path(config.checkpoint.load).is_dir():
        yield f"checkpoint.load={config.checkpoint.load} is neither null, latest nor a folder"


def _check_support(config: Config) -> Iterator[str]:
    """Samples that aren't of π_t itself are only right with importance weights."""
    r = config.rollout
    if config.objective.importance_weight is not None:
        return
    if r.top_p < 1 or r.top_k > 0:
        yield (
            f"rollout.top_p={r.top_p:g} and rollout.top_k={r.top_k} cut the distribution that is sampled from, which "
            "is then not the π_t that is trained: set them to 1 and -1, or correct for it with "
            "objective.importance_weight=sequence"
        )
    if r.ahead:
        yield (
            f"rollout.ahead={r.ahead} trains on responses of the policy before: correct for it with "
            "objective.importance_weight=sequence"
        )
