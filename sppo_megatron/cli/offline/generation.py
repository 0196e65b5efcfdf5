"""Responses to every prompt of a data set, in file order, into a rollout file."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from sppo_megatron.cli.offline.batches import Batches, Shard
from sppo_megatron.cli.offline.engine import standalone_collector
from sppo_megatron.cli.offline.write import BatchWriter, Output
from sppo_megatron.cluster.consensus import agreed, check_same_config
from sppo_megatron.cluster.failure_report import failures_reported
from sppo_megatron.config import Config, RewardConfig
from sppo_megatron.data.digests import model_digest, prompts_digest
from sppo_megatron.errors import ConfigError
from sppo_megatron.policy.initialize import joined_job
from sppo_megatron.rollout.registry import engine_kind
from sppo_megatron.train.inputs import Inputs, read_inputs
from sppo_megatron.train.rollouts import sampling_params
from sppo_megatron.types import Group


def generate_file(config: Config, composed: DictConfig, output: Output, batch_size: int, shard: Shard) -> None:
    """K = rollout.num_samples_per_prompt responses to each prompt of the training sources, none of them scored.

    batch_size: prompts sampled and written together. A batch's number takes the iteration's place in its seeds, so a
    response depends on rollout.seed, batch_size and the prompt's place in the whole list, and not on the shard.

    Raises, the same on every rank, ConfigError for what can't be read, and TrainingError if no server is left;
    LostRankError if another rank is lost.
    """
    with joined_job(config.parallelism.distributed_timeout_minutes), failures_reported():
        check_same_config(composed)
        inputs = agreed(lambda: read_inputs(without_scoring(config)))
        prompts = inputs.train_prompts
        if not prompts:
            raise ConfigError(f"data.train_path={config.data.train_path} has no prompts")
        batches = Batches(len(prompts), batch_size, shard)
        writer = BatchWriter(output, agreed(lambda: generation_settings(config, inputs, for_evaluation=False)), batches)
        with standalone_collector(config, inputs, for_evaluation=False) as collector:

            def sample(batch: int) -> tuple[list[Group], dict[str, float]]:
                started = time.perf_counter()
                items = batches.items(batch)
                groups = collector.collect(prompts[items.start : items.stop], batch)
                seconds = time.perf_counter() - started
                tokens = sum(len(response.token_ids) for group in groups for response in group.responses)
                return groups, {"tokens_per_second": tokens / max(seconds, 1e-9)}

            writer.write(sample)


def without_scoring(config: Config) -> Config:
    """The configuration without what generating doesn't read: the reward, and the prompts of evaluations."""
    return replace(config, reward=RewardConfig(kind="none"), data=replace(config.data, eval_path=None, eval_sources=[]))


def generation_settings(config: Config, inputs: Inputs, for_evaluation: bool) -> dict[str, Any]:
    """What decides the responses, to training prompts or to those of the evaluation: see ResumableFile."""
    params = sampling_params(config, inputs, for_evaluation)
    r = config.rollout
    return {
        "command": "generate",
        "prompts": prompts_digest(inputs.eval_prompts if for_evaluation else inputs.train_prompts),
        "model": model_digest(inputs.folder),
        "model.init": config.model.init if config.model.init == "hf" else [config.model.init, config.train.seed],
        "precision.dtype": config.precision.dtype,
        "rollout.engine": r.engine,
        "rollout.num_samples_per_prompt": (config.eval if for_evaluation else r).num_samples_per_prompt,
        "rollout.seed": r.seed,
        "rollout.max_response_length": params.max_new_tokens,
        "rollout.temperature": params.temperature,
        "rollout.top_p": params.top_p,
        "rollout.top_k": params.top_k,
        "stop_token_ids": sorted(params.stop_token_ids),
        **engine_kind(config).settings(config),
    }
