"""What a run reads from disk before any model is built."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sppo_megatron.config import Config, RewardConfig
from sppo_megatron.config.parallelism import check_layout
from sppo_megatron.config.sources import Source, evaluation_sources, training_sources, with_rewards_of_sources
from sppo_megatron.data.sources import LoadedSource, load_sources
from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.architecture import Architecture
from sppo_megatron.hf.families import FAMILIES
from sppo_megatron.hf.hf_checkpoint import HFTensors, RandomTensors
from sppo_megatron.hf.hf_config import load_hf_config, read_architecture
from sppo_megatron.hf.hf_folder import load_generation_config, resolve_hf_folder, stop_token_ids
from sppo_megatron.hf.hf_model import open_weights
from sppo_megatron.hf.load import check_tensors
from sppo_megatron.hf.mapping import hf_shapes, parameter_layouts
from sppo_megatron.hf.tokenizer import decoder, load_tokenizer
from sppo_megatron.hf.untrained import untrained_names, untrained_tensors
from sppo_megatron.policy.model.mapped import MappedModel
from sppo_megatron.rewards.choices import prompt_reader
from sppo_megatron.rewards.named import scorer_of
from sppo_megatron.rewards.registry import build_scorer
from sppo_megatron.rewards.scorer import Scorer
from sppo_megatron.rewards.text import Decode
from sppo_megatron.rollout.registry import engine_kind, stored_kind
from sppo_megatron.train.input_checks import check_inputs
from sppo_megatron.types import Prompt

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from sppo_megatron.rollout.registry import StoredGroups


@dataclass
class Inputs:
    """stored: groups that were made before; None if an engine samples. model: its weights are read when asked for.

    stop_token_ids: what ends a response. eval_scorer: of the evaluation's prompts; `scorer` closes it.
    """

    folder: Path
    hf_config: Any
    model: MappedModel
    tokenizer: Any | None
    decode: Decode | None
    sources: list[LoadedSource]
    eval_prompts: list[Prompt]
    stored: StoredGroups | None
    scorer: Scorer
    eval_scorer: Scorer
    stop_token_ids: frozenset[int]

    def untrained_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What the folder holds beside the policy's weights; see `hf.untrained`."""
        if self.hf_config.model_type in FAMILIES:
            yield from untrained_tensors(self.folder, read_architecture(self.hf_config))

    @property
    def train_prompts(self) -> list[Prompt]:
        """Of all sources, one behind the other."""
        return [prompt for each in self.sources for prompt in each.prompts]

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt, of training and evaluation."""
        return max((len(prompt.token_ids) for prompt in (*self.train_prompts, *self.eval_prompts)), default=0)


def read_inputs(config: Config) -> Inputs:
    """Raises ValueError, ImportError or FileNotFoundError with what to change. Doesn't communicate."""
    engine_kind(config).check_installed()
    folder = resolve_hf_folder(config.model.hf_path)
    hf_config = load_hf_config(str(folder))
    model = open_model(config, folder, hf_config)
    check_layout(config.parallelism, **model.layout_sizes())  # type: ignore[arg-type]
    tokenizer = load_tokenizer(folder)
    decode = None if tokenizer is None else decoder(tokenizer)
    reward = with_rewards_of_sources(config.reward, config.data)
    scorer = build_scorer(reward, decode)
    kind = stored_kind(config)
    stored = kind.open(config, tokenizer) if kind is not None else None
    trained = [] if stored else training_sources(config.data)
    loaded = _load([*trained, *evaluation_sources(config.data)], config, tokenizer, reward, scorer.needs_answer)
    eval_prompts = [prompt for each in loaded[len(trained) :] for prompt in each.prompts]
    inputs = Inputs(
        folder=folder,
        hf_config=hf_config,
        model=model,
        tokenizer=tokenizer,
        decode=decode,
        sources=stored.sources if stored else loaded[: len(trained)],
        eval_prompts=eval_prompts,
        stored=stored,
        scorer=scorer,
        eval_scorer=scorer_of(eval_prompts, scorer),
        stop_token_ids=stop_token_ids(hf_config, load_generation_config(folder), tokenizer)
        | frozenset(config.rollout.stop_token_ids),
    )
    check_inputs(config, inputs, loaded)
    return inputs


def open_model(config: Config, folder: Path, hf_config: Any) -> MappedModel:
    """Raises ConfigError for a family, a field of config.json or weights that can't be had."""
    architecture = read_architecture(hf_config)
    return MappedModel(architecture, _tensors(config, folder, architecture), config.model.make_vocab_size_divisible_by)


def _load(
    sources: list[Source], config: Config, tokenizer: Any | None, reward: RewardConfig, needs_answer: bool
) -> list[LoadedSource]:
    if sources and tokenizer is None:
        raise ConfigError(
            f"{sources[0].path} holds text and model.hf_path={config.model.hf_path} has no tokenizer: save one into "
            "that folder"
        )
    return load_sources(
        sources,
        tokenizer,
        require_answer=needs_answer,
        accept=partial(prompt_reader, reward),
        max_response_length=config.rollout.max_response_length,
    )


def _tensors(config: Config, folder: Path, architecture: Architecture) -> HFTensors:
    layouts = parameter_layouts(architecture, architecture.vocab_size)
    if config.model.init == "hf":
        tensors = open_weights(folder, architecture)
        check_tensors(layouts, tensors)
        kept = untrained_names(folder, architecture)
        if kept:
            logger.warning(
                "%d tensors of %s are no part of the policy: they are not trained, and exported as they are (%s, ...)",
                len(kept),
                folder,
                kept[0],
            )
        return tensors
    norms = 0.0 if architecture.zero_centered_norms else 1.0
    return RandomTensors(hf_shapes(layouts), architecture.initializer_range, config.train.seed, norms)
