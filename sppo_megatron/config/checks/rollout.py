"""Rollouts, and the checkpoint to continue from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sppo_megatron.config import Config


def check_rollout(config: Config) -> Iterator[str]:
    r, data, reward = config.rollout, config.data, config.reward
    if not r.temperature > 0:
        yield f"rollout.temperature={r.temperature} must be above 0: π_t is the distribution that is sampled from"
    if not 0 < r.top_p <= 1:
        yield f"rollout.top_p={r.top_p} must be in (0, 1]"
    if r.top_k == 0 or r.top_k < -1:
        yield f"rollout.top_k={r.top_k} must be -1 (off) or at least 1"
    if r.engine == "replay":
        if r.path is None:
            yield "rollout.engine=replay needs rollout.path: a rollout file, or a folder with one per iteration"
        elif not Path(r.path).exists():
            yield f"rollout.path={r.path} does not exist"
    elif data.train_path is None:
        yield f"rollout.engine={r.engine} needs data.train_path: a file or folder of prompts, or a hub id"
    elif config.train.prompts_per_iteration is None:
        yield f"rollout.engine={r.engine} needs train.prompts_per_iteration"
    if r.engine != "replay":
        yield from _check_support(config)
    yield from _check_engine(config)
    if (reward.kind in ("function", "pairwise_function")) != (reward.function is not None):
        yield (
            "reward.kind=function or pairwise_function and reward.function=module:name belong together: "
            "give both or neither"
        )
    if config.checkpoint.load not in (None, "latest") and not Path(config.checkpoint.load).is_dir():
        yield f"checkpoint.load={config.checkpoint.load} is neither null, latest nor a folder"


def check_samples(config: Config) -> Iterator[str]:
    """Whether the engine makes responses at all."""
    if config.rollout.engine == "replay":
        yield "rollout.engine=replay makes no responses: choose megatron, vllm or vllm_server"


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


def _check_engine(config: Config) -> Iterator[str]:
    r = config.rollout
    if r.ahead and r.engine != "vllm_server":
        yield f"rollout.ahead={r.ahead} needs rollout.engine=vllm_server: other engines share the trainer's processes"
    if r.vllm.gpu_memory_utilization > 1:
        yield f"rollout.vllm.gpu_memory_utilization={r.vllm.gpu_memory_utilization} is a share: at most 1"
    if r.verify and r.engine not in ("vllm", "vllm_server"):
        yield f"rollout.verify=true is for engines with weights of their own, and rollout.engine={r.engine} has none"
    if r.engine != "vllm_server":
        return
    if not r.server.urls:
        yield (
            "rollout.engine=vllm_server needs rollout.server.urls=[http://host:port, ...]: "
            "start servers with `sppo serve --model ...`, which prints them"
        )
    for url in r.server.urls:
        if not re.fullmatch(r"https?://[^/\s]+/?", url):
            yield f"rollout.server.urls holds {url!r}: each is http://host:port, without a path"
    if len(set(r.server.urls)) < len(r.server.urls):
        yield "rollout.server.urls names a server twice"


def check_engine_processes(config: Config, world_size: int) -> Iterator[str]:
    """Whether vLLM's engines fill the job's processes."""
    size = config.rollout.vllm.tensor_parallel_size
    if config.rollout.engine == "vllm" and size > 0 and world_size % size:
        yield (
            f"rollout.vllm.tensor_parallel_size={size} does not divide the {world_size} processes of the job, "
            "which are split into engines of that many ranks"
        )
