"""The configured rollouts: the engine, what collects groups with it, and where an iteration's groups come from."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from sppo_megatron.config import Config
from sppo_megatron.data.mixture import PromptMixture
from sppo_megatron.data.prompt_stream import PromptStream
from sppo_megatron.data.sources import build_stream, check_enough
from sppo_megatron.engines.base import Engine, Request
from sppo_megatron.engines.kind import Surroundings
from sppo_megatron.engines.megatron import TokenGenerator
from sppo_megatron.engines.probe import BOUNDS, WeightProbe
from sppo_megatron.errors import ConfigError
from sppo_megatron.objective.base import Objective
from sppo_megatron.rollout.adaptive import Lessons
from sppo_megatron.rollout.ahead import GroupsAhead
from sppo_megatron.rollout.collector import Collector
from sppo_megatron.rollout.filter import build_filter, has_spread
from sppo_megatron.rollout.registry import engine_kind
from sppo_megatron.rollout.rounds import Rounds
from sppo_megatron.rollout.source import GroupSource, Prompts, SampledGroups
from sppo_megatron.train.inputs import Inputs
from sppo_megatron.types import SamplingParams


def build_engine(
    config: Config, inputs: Inputs, generator: Callable[[], TokenGenerator], standalone: bool = False
) -> Engine:
    """See EngineKind.build and Surroundings. Raises ConfigError if it can't be used."""
    around = Surroundings(config, inputs.folder, inputs.longest_prompt, generator, standalone)
    return engine_kind(config).build(around)


def sampling_params(config: Config, inputs: Inputs, for_evaluation: bool) -> SamplingParams:
    r = config.rollout
    return SamplingParams(
        max_new_tokens=r.max_response_length,
        temperature=config.eval.temperature if for_evaluation else r.temperature,
        top_p=1.0 if for_evaluation else r.top_p,
        top_k=-1 if for_evaluation else r.top_k,
        stop_token_ids=inputs.stop_token_ids,
    )


def build_collector(config: Config, inputs: Inputs, engine: Engine, for_evaluation: bool) -> Collector:
    """What answers prompts, of training or of evaluations."""
    return Collector(
        engine,
        sampling_params(config, inputs, for_evaluation),
        (config.eval if for_evaluation else config.rollout).num_samples_per_prompt,
        config.rollout.seed,
        inputs.decode,
    )


def build_source(config: Config, inputs: Inputs, engine: Engine, stream: Prompts) -> GroupSource:
    """Where the groups of the iterations come from if they are sampled. stream: what prompts are drawn from."""
    assert config.train.prompts_per_iteration is not None, "checked"
    first_count = math.ceil(config.rollout.oversample * config.train.prompts_per_iteration)
    sampled = SampledGroups(build_collector(config, inputs, engine, for_evaluation=False), stream, first_count)
    return GroupsAhead(sampled, config.train.iterations) if config.rollout.ahead else sampled


def prompt_stream(config: Config, inputs: Inputs) -> PromptStream | PromptMixture:
    """The prompts to train on, from the first one on. Raises ConfigError if there are fewer than an iteration takes."""
    train = config.train
    assert train.prompts_per_iteration is not None, "checked"
    check_enough(inputs.sources, train.iterations * train.prompts_per_iteration)
    return build_stream(inputs.sources, train.prompts_per_iteration, train.seed, train.shuffle, config.data.adaptive)


def build_rounds(config: Config, inputs: Inputs, engine: Engine, objective: Objective) -> Rounds:
    """What makes the iterations' groups. Raises ConfigError, the same on every rank."""
    r, keeps = config.rollout, build_filter(config.rollout.filter, objective, config.rollout.min_spread)
    share = config.reward.max_failed_share
    if inputs.stored is not None:
        return Rounds(inputs.stored, inputs.scorer if r.rescore else None, share, keeps)
    stream = prompt_stream(config, inputs)
    teach = partial(has_spread, objective=objective, min_spread=r.min_spread)
    return Rounds(
        build_source(config, inputs, engine, stream),
        inputs.scorer,
        share,
        keeps,
        config.train.prompts_per_iteration,
        r.max_rounds,
        r.oversample,
        Lessons(stream, teach) if config.data.adaptive else None,
    )


def build_probe(config: Config, inputs: Inputs, engine: Engine) -> WeightProbe | None:
    """None if nobody wants to look at the engine's weights."""
    if not config.rollout.verify:
        return None
    if not inputs.train_prompts:
        raise ConfigError("rollout.verify=true needs a prompt, and there is none")
    request = Request(inputs.train_prompts[0].token_ids, (config.rollout.seed,))
    params = sampling_params(config, inputs, for_evaluation=False)
    return WeightProbe(engine, request, params, BOUNDS[config.precision.dtype])
