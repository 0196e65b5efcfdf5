"""What a run reads from disk before any model is built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppo_megatron.config import Config
from sppo_megatron.conversion.architecture import Architecture, load_hf_config, read_architecture
from sppo_megatron.conversion.hf_checkpoint import HFTensors, RandomTensors
from sppo_megatron.conversion.hf_folder import load_generation_config, load_tokenizer, resolve_hf_folder, stop_token_ids
from sppo_megatron.conversion.hf_model import open_weights
from sppo_megatron.conversion.mapping import hf_shapes, parameter_layouts
from sppo_megatron.data.prompts import load_prompts
from sppo_megatron.errors import ConfigError
from sppo_megatron.reward.build import build_scorer
from sppo_megatron.reward.share import Scorer
from sppo_megatron.rollout.replay import ReplayEngine
from sppo_megatron.rollout.vllm_replica import check_vllm_installed
from sppo_megatron.types import Prompt
from sppo_megatron.validation import check_layout


@dataclass
class Inputs:
    """replay: where the groups come from files. tensors: the weights to start from, read when they are asked for."""

    folder: Path
    hf_config: Any
    architecture: Architecture
    tokenizer: Any | None
    generation_config: Any | None
    train_prompts: list[Prompt]
    eval_prompts: list[Prompt]
    replay: ReplayEngine | None
    scorer: Scorer
    tensors: HFTensors

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """What ends a response."""
        return stop_token_ids(self.hf_config, self.generation_config, self.tokenizer)

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt, of training and evaluation."""
        return max((len(prompt.token_ids) for prompt in (*self.train_prompts, *self.eval_prompts)), default=0)


def read_inputs(config: Config) -> Inputs:
    """Raises ValueError, ImportError or FileNotFoundError with what to change. Doesn't communicate."""
    if config.rollout.engine == "vllm":
        check_vllm_installed()
    folder = resolve_hf_folder(config.model.hf_path)
    hf_config = load_hf_config(str(folder))
    architecture = read_architecture(hf_config)
    check_layout(config.parallelism, **architecture.layout_sizes())  # type: ignore[arg-type]
    tokenizer = load_tokenizer(folder)
    decode = None if tokenizer is None else lambda ids: tokenizer.decode(ids.tolist(), skip_special_tokens=True)
    scorer = build_scorer(config.reward, decode)
    replay = None
    if config.rollout.engine == "replay":
        assert config.rollout.path is not None
        replay = ReplayEngine(config.rollout.path, config.train.prompts_per_iteration, config.train.iterations)
    return Inputs(
        folder=folder,
        hf_config=hf_config,
        architecture=architecture,
        tokenizer=tokenizer,
        generation_config=load_generation_config(folder),
        train_prompts=[] if replay else _prompts(config.data.train_path, config, tokenizer, scorer),
        eval_prompts=_prompts(config.data.eval_path, config, tokenizer, scorer),
        replay=replay,
        scorer=scorer,
        tensors=_tensors(config, folder, architecture),
    )


def _prompts(path: str | None, config: Config, tokenizer: Any | None, scorer: Scorer) -> list[Prompt]:
    if path is None:
        return []
    if tokenizer is None:
        raise ConfigError(
            f"{path} holds text and model.hf_path={config.model.hf_path} has no tokenizer: save one into that folder"
        )
    return load_prompts(path, tokenizer, config.data, require_answer=scorer.needs_answer)


def _tensors(config: Config, folder: Path, architecture: Architecture) -> HFTensors:
    if config.model.init == "hf":
        return open_weights(folder, architecture.family)
    shapes = hf_shapes(parameter_layouts(architecture, architecture.vocab_size))
    return RandomTensors(shapes, architecture.initializer_range, config.train.seed)
