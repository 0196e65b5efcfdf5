"""Rollouts, their data and the checkpoint to continue from."""

from __future__ import annotations

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
        yield f"rollout.engine={r.engine} needs data.train_path: a JSONL file of prompts"
    elif config.train.prompts_per_iteration is None:
        yield f"rollout.engine={r.engine} needs train.prompts_per_iteration"
    for key in ("train_path", "eval_path"):
        path = getattr(data, key)
        if path is not None and not Path(path).exists():
            yield f"data.{key}={path} does not exist"
    if (reward.kind == "function") != (reward.function is not None):
        yield "reward.kind=function and reward.function=module:name belong together: give both or neither"
    if config.checkpoint.load not in (None, "latest") and not Path(config.checkpoint.load).is_dir():
        yield f"checkpoint.load={config.checkpoint.load} is neither null, latest nor a folder"
