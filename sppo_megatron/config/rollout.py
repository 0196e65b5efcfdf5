"""Rollouts: how responses are sampled, and when that is what is trained on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Interval

from sppo_megatron.config.keys import AtLeastOne, Free, NextIteration, NotNegative, Positive, UserPath
from sppo_megatron.config.objective import learns_from_humans

if TYPE_CHECKING:
    from sppo_megatron.config.schema import Config


@dataclass
class MismatchConfig:
    """The gate between rollout_log_probs and the trainer's old_log_probs of the same tokens, in nats."""

    action: NextIteration[Literal["warn", "importance_weight", "drop", "stop"]] = "warn"
    """What is done about an iteration that exceeds mean_bound or share_bound. importance_weight weights its responses
    as objective.importance_weight does, by sequence if that is null. drop leaves out of every iteration the responses
    that exceed mean_bound or sequence_bound."""
    mean_bound: NextIteration[Positive[float]] = 0.05
    "Mean |difference| of a token."
    share_bound: NextIteration[Positive[float]] = 0.05
    "Share of tokens whose |difference| exceeds token_bound."
    token_bound: NextIteration[Positive[float]] = 0.5
    "|difference| of one token."
    sequence_bound: NextIteration[Positive[float]] = 10.0
    "|difference| summed over a response."


@dataclass
class VllmConfig:
    """vLLM inside the training ranks (rollout.engine=vllm)."""

    tensor_parallel_size: Free[AtLeastOne[int]] = 1
    "Consecutive ranks that one engine is spread over; the world holds as many engines as fit."
    max_model_len: Free[AtLeastOne[int] | None] = None
    "Tokens of prompt and response; null = as many as the prompts need."
    max_num_seqs: Free[AtLeastOne[int]] = 256
    "Sequences generated at a time."
    gpu_memory_utilization: Free[Annotated[float, Interval(gt=0, le=1)]] = 0.5
    "Share of a device's memory that vLLM takes while it generates."
    kv_cache_memory_mib: Free[AtLeastOne[int] | None] = None
    "MiB of a rank's key-value cache instead; null = by gpu_memory_utilization, on CPU 256."
    enforce_eager: Free[bool] = False
    "Run without CUDA graphs."
    engine_args: Free[dict[str, Any]] = field(default_factory=dict)
    "More of vLLM's own engine arguments, by their names."


@dataclass
class ServerConfig:
    """vLLM servers (rollout.engine=vllm_server), as `sppo serve` starts them."""

    urls: Free[list[str]] = field(default_factory=list)
    "Each server's http://host:port, or https://host/path, with or without /v1."
    model: Free[str | None] = None
    "Name of the model that they serve; null = the only one."
    api_key_env: Free[str] = "VLLM_API_KEY"
    "Environment variable that holds the API key, which is written nowhere."
    concurrency: Free[AtLeastOne[int]] = 64
    "Prompts under way on one server."
    timeout_s: Free[Positive[float]] = 600.0
    "Seconds for one prompt's responses."
    retries: Free[NotNegative[int]] = 3
    "Attempts after the first on the same server; then it is left out until the next push finds it healthy."
    backoff_s: Free[NotNegative[float]] = 1.0
    "Seconds before the second attempt, doubling from one to the next."
    weight_sync: Free[Literal["broadcast", "disk"]] = "broadcast"
    "How weights travel: broadcast (NCCL on CUDA, gloo on CPU), or safetensors in sync_folder."
    sync_folder: Free[UserPath | None] = None
    "Folder that every server sees, for weight_sync=disk; null = output_dir/weights."
    bucket_mib: Free[Positive[float]] = 256.0
    "MiB that are broadcast at a time."


@dataclass
class RolloutConfig:
    """How responses are sampled. top_p and top_k change the distribution's support, which needs
    objective.importance_weight."""

    engine: NextIteration[str] = "megatron"
    """Who samples: megatron, vllm or vllm_server; replay reads stored responses, and preferences records of prompt,
    chosen and rejected from data.train_path or data.sources."""
    path: NextIteration[UserPath | None] = None
    "A replay's rollout file, or a folder with one for each iteration."
    rescore: NextIteration[bool] = False
    "Score a replay's responses again."
    num_samples_per_prompt: NextIteration[AtLeastOne[int]] = 8
    "Responses to each prompt."
    temperature: NextIteration[Positive[float]] = 1.0
    "Of the distribution that is sampled from, and trained."
    top_p: NextIteration[Annotated[float, Interval(gt=0, le=1)]] = 1.0
    "Sample from the most likely tokens of this total probability; 1 = all."
    top_k: NextIteration[Literal[-1] | AtLeastOne[int]] = -1
    "Sample from this many most likely tokens; -1 = all."
    max_response_length: NextIteration[AtLeastOne[int]] = 512
    "Tokens."
    stop_token_ids: NextIteration[list[int]] = field(default_factory=list)
    "More tokens that end a response, besides those of the model, its generation config and its tokenizer."
    batch_size: Free[AtLeastOne[int]] = 256
    "Sequences generated at a time on one replica (engine=megatron)."
    seed: NextIteration[NotNegative[int]] = 1234
    "Of the samples."
    filter: NextIteration[str | None] = None
    """Which groups are left out of training, and replaced by those of the next prompts: degenerate, those whose rewards
    differ by no more than min_spread, or a function `module:name` that is given a group and says whether to keep it;
    null = none."""
    min_spread: NextIteration[NotNegative[float]] = 0.0
    "Of the rewards or win rates of a group, for filter=degenerate."
    max_rounds: NextIteration[AtLeastOne[int]] = 8
    "How often prompts are drawn for one iteration until train.prompts_per_iteration groups pass the filter."
    oversample: NextIteration[AtLeastOne[float]] = 1.0
    "Prompts drawn in a round for each group that is wanted; those behind the last one needed are drawn again."
    ahead: NextIteration[bool] = False
    """Generate the next iteration's responses while this one is trained (engine=vllm_server). They are of the policy
    before, which needs objective.importance_weight."""
    verify: Free[bool] = False
    "After every push of weights, compare each replica's log-probs of a probe prompt with the trainer's."
    mismatch: MismatchConfig = field(default_factory=MismatchConfig)
    vllm: VllmConfig = field(default_factory=VllmConfig)
    server: ServerConfig = field(default_factory=ServerConfig)


def check_rollout(config: Config, generates: bool) -> Iterator[str]:
    """generates: whether responses are sampled; False if stored ones are read."""
    r, data = config.rollout, config.data
    if generates and data.train_path is None and not data.sources:
        yield f"rollout.engine={r.engine} needs data.train_path: a file or folder of prompts, or a hub id"
    elif generates and config.train.prompts_per_iteration is None:
        yield f"rollout.engine={r.engine} needs train.prompts_per_iteration"
    if generates:
        yield from _check_support(config)
    yield from _check_filter(config, generates)


def _check_filter(config: Config, generates: bool) -> Iterator[str]:
    r = config.rollout
    if r.filter is not None and r.filter != "degenerate" and not re.fullmatch(r"[\w.]+:[\w.]+", r.filter):
        yield f"rollout.filter={r.filter!r} is not known: choose degenerate, null, or a function as module:name"
    if r.filter == "degenerate" and learns_from_humans(config.objective):
        yield "rollout.filter=degenerate looks at rewards, which objective.pairwise=spin has none of: set it to null"
    if r.filter == "degenerate" and generates and r.num_samples_per_prompt < 2:
        yield "rollout.filter=degenerate compares a group's rewards: rollout.num_samples_per_prompt must be at least 2"
    if config.data.adaptive and (not generates or learns_from_humans(config.objective)):
        yield "data.adaptive looks at the rewards of responses that are sampled, and there are none: set it to 0"
    if config.data.adaptive and generates and r.num_samples_per_prompt < 2:
        yield "data.adaptive compares a group's rewards: rollout.num_samples_per_prompt must be at least 2"
    given = [key for key in ("max_rounds", "oversample") if getattr(r, key) != getattr(RolloutConfig, key)]
    if given and (r.filter is None or not generates):
        names = " and ".join(f"rollout.{key}" for key in given)
        why = "rollout.filter=null replaces nothing" if generates else f"rollout.engine={r.engine} draws no prompts"
        yield f"{names} can't be used, for {why}: take it away"
    if r.min_spread and r.filter != "degenerate":
        yield f"rollout.min_spread={r.min_spread:g} is read with rollout.filter=degenerate alone: take it away"


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
            "rollout.ahead=true trains on responses of the policy before: correct for it with "
            "objective.importance_weight=sequence"
        )
