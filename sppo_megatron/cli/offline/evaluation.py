"""A model answers held-out prompts, its answers are scored, and what they say is written down."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf

from sppo_megatron.cli.offline.batches import Batches
from sppo_megatron.cli.offline.engine import standalone_collector
from sppo_megatron.cli.offline.generation import generation_settings
from sppo_megatron.cli.offline.model_folder import in_hf_format
from sppo_megatron.cli.offline.result import Result, print_result, write_result
from sppo_megatron.cli.offline.scoring import reward_settings, score_batch
from sppo_megatron.cli.offline.write import BatchWriter, Output
from sppo_megatron.cluster.consensus import agreed, check_same_config, decided_by_first_rank
from sppo_megatron.cluster.failure_report import failures_reported
from sppo_megatron.config import Config
from sppo_megatron.data.digests import model_digest, prompts_digest
from sppo_megatron.data.rollout_file import read_groups, write_groups
from sppo_megatron.errors import ConfigError
from sppo_megatron.policy.initialize import joined_job
from sppo_megatron.rewards.scorer import Scorer
from sppo_megatron.train.evaluation.comparison import have_same_prompts, rates_against, with_win_rates
from sppo_megatron.train.evaluation.measures import Right, share_of_rates
from sppo_megatron.train.evaluation.metrics import findings_by_set
from sppo_megatron.train.inputs import Inputs, read_inputs
from sppo_megatron.types import Group

ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class Job:
    """output: a folder. batch_size: prompts answered, scored and saved together. against: a rollout file."""

    config: Config
    composed: DictConfig
    output: Path
    overwrite: bool
    batch_size: int
    against: Path | None


def evaluate_model(job: Job) -> None:
    """Writes the folder `output` and prints the table. The answers are those of an evaluation during training.

    Raises, the same on every rank, ConfigError for what can't be read or written, TrainingError if too little could
    be scored or no server is left; LostRankError if another rank is lost.
    """
    config = without_training(job.config)
    with joined_job(config.parallelism.distributed_timeout_minutes), failures_reported():
        check_same_config(job.composed)
        with in_hf_format(config, job.output / "model.partial") as config:
            inputs = agreed(lambda: read_inputs(config))
            try:
                if not inputs.eval_prompts:
                    raise ConfigError(f"data.eval_path={config.data.eval_path} has no prompts")
                opponents = None if job.against is None else decided_by_first_rank(lambda: _opponents(job, inputs))
                groups = _answers(job, config, inputs)
                result = _measure(job, inputs, groups, opponents)
            finally:
                inputs.scorer.close()
        if dist.get_rank() == 0:
            write_result(job.output, result, OmegaConf.to_yaml(job.composed, resolve=True))
            print_result(job.output, result)


def without_training(config: Config) -> Config:
    """The configuration without what training alone reads: its prompts."""
    return replace(config, data=replace(config.data, train_path=None, sources=[]))


def _answers(job: Job, config: Config, inputs: Inputs) -> list[Group]:
    """To every prompt, from the file if they are there; scored, unless they are to be compared."""
    prompts = inputs.eval_prompts
    batches = Batches(len(prompts), job.batch_size)
    output = Output(job.output / ANSWERS, job.overwrite, config.logger.progress)
    settings = generation_settings(config, inputs, for_evaluation=True) | reward_settings(config)
    writer = BatchWriter(output, settings | {"command": "evaluate"}, batches)
    with standalone_collector(config, inputs, for_evaluation=True) as collector:

        def answer(batch: int) -> tuple[list[Group], dict[str, float]]:
            items = batches.items(batch)
            groups = collector.collect(prompts[items.start : items.stop], 0, first_place=items.start)
            if not inputs.eval_scorer.gives_preferences:
                groups = score_batch(inputs.eval_scorer, groups, config.reward.max_failed_share)
            return groups, {}

        writer.write(answer)
    return decided_by_first_rank(lambda: read_groups(output.path))


def _opponents(job: Job, inputs: Inputs) -> list[Group]:
    """One for each answer: a single one of a prompt stands against all answers to it."""
    assert job.against is not None
    if not job.against.is_file():
        raise ConfigError(f"--against {job.against} does not exist")
    n = job.config.eval.num_samples_per_prompt
    found = [replace(g, responses=g.responses * (n if len(g.responses) == 1 else 1)) for g in read_groups(job.against)]
    if not have_same_prompts([Group(prompt) for prompt in inputs.eval_prompts], found):
        raise ConfigError(f"--against {job.against} answers other prompts than the evaluation's, or in another order")
    if any(len(group.responses) != n for group in found):
        raise ConfigError(
            f"--against {job.against} has another number of answers to a prompt than eval.num_samples_per_prompt={n}: "
            "give as many, or one that all are compared with"
        )
    if not inputs.eval_scorer.gives_preferences and any(r.reward is None for group in found for r in group.responses):
        raise ConfigError(f"--against {job.against} is not scored: score it with the same reward (sppo score) first")
    return found


def _measure(job: Job, inputs: Inputs, groups: list[Group], opponents: list[Group] | None) -> Result:
    scorer: Scorer = inputs.eval_scorer
    rates = None
    if opponents is not None:
        rates, errors = rates_against(scorer, groups, opponents)
        if scorer.gives_preferences:
            groups = with_win_rates(groups, rates, errors)
            if dist.get_rank() == 0:
                write_groups(job.output / ANSWERS, groups)
    findings = findings_by_set(groups, None if scorer.gives_preferences else Right(job.config.eval.right_reward))
    if rates is not None:
        sources = [group.prompt.source for group in groups]
        for name, found in findings.items():
            of_set = [rate for rate, source in zip(rates, sources, strict=True) if name in (None, source)]
            found.estimates["win_rate"] = share_of_rates(of_set)
    return Result(
        model={"path": job.config.model.hf_path, "digest": model_digest(inputs.folder)},
        data={"prompts": len(groups), "digest": prompts_digest(inputs.eval_prompts)},
        settings=_settings(job),
        findings=findings,
    )


def _settings(job: Job) -> dict[str, Any]:
    """What a reader wants to know of how the answers came about."""
    config = job.config
    return {
        "engine": config.rollout.engine,
        "samples per prompt": config.eval.num_samples_per_prompt,
        "temperature": config.eval.temperature,
        "max response length": config.rollout.max_response_length,
        "seed": config.rollout.seed,
        "dtype": config.precision.dtype,
        **reward_settings(config),
        "right reward": config.eval.right_reward,
        "against": None if job.against is None else str(job.against),
    }
