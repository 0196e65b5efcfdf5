"""The prompts of every configured source, and the stream that training draws from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from sppo_megatron.config.sources import Source
from sppo_megatron.data.adaptive_stream import AdaptiveStream
from sppo_megatron.data.human_response import drop_long_responses
from sppo_megatron.data.mixture import PromptMixture, WeightedStream
from sppo_megatron.data.prompt_stream import PromptStream
from sppo_megatron.data.prompts import load_prompts
from sppo_megatron.data.records import Split
from sppo_megatron.errors import ConfigError
from sppo_megatron.types import Prompt

T = TypeVar("T")


@dataclass(frozen=True)
class LoadedSource:
    """A source and its prompts, in file order."""

    source: Source
    prompts: list[Prompt]


def load_sources(
    sources: Sequence[Source],
    tokenizer: Any,
    *,
    require_answer: bool,
    accept: Callable[[Source], Callable[[Prompt], Prompt]],
    max_response_length: int,
) -> list[LoadedSource]:
    """See `load_prompts` and `drop_long_responses`. accept: of each source's prompts.

    Raises ConfigError that holds what is wrong with every source, each named if there are several.
    """

    def load(source: Source) -> list[Prompt]:
        split = Split(source.split, source.default_split, _split_key(source))
        prompts = load_prompts(source.path, tokenizer, source.data, require_answer, split, accept(source), source.name)
        return drop_long_responses(prompts, max_response_length, source.path)

    prompts = of_every_source(sources, load)
    return [LoadedSource(source, each) for source, each in zip(sources, prompts, strict=True)]


def of_every_source(sources: Sequence[Source], load: Callable[[Source], list[T]]) -> list[list[T]]:
    """What load finds in each. Raises ConfigError with the problems of all of them."""
    loaded: list[list[T]] = []
    problems = []
    for source in sources:
        try:
            loaded.append(load(source))
            if not loaded[-1] and source.name is not None:
                raise ConfigError(f"{source.path} has no prompts")
        except ConfigError as error:
            problems.append(str(error) if source.name is None else f"{source.key}: {error}")
    if problems:
        raise ConfigError("\n".join(problems))
    return loaded


def _split_key(source: Source) -> str:
    if source.name is None:
        return source.key.replace("_path", "_split")
    return f"the split of {source.key}"


def build_stream(
    sources: Sequence[LoadedSource], prompts_per_iteration: int, seed: int, shuffle: bool, adaptive: int = 0
) -> PromptStream | PromptMixture:
    """Of the only source, or of several by their weights. A source's order depends on its name and not on the others.

    adaptive: see AdaptiveStream; 0 passes over no prompt. Raises ConfigError as PromptStream does.
    """
    kind = partial(AdaptiveStream, most=adaptive) if adaptive else PromptStream
    if len(sources) == 1 and sources[0].source.name is None:
        return kind(sources[0].prompts, prompts_per_iteration, seed, shuffle)
    streams = []
    for each in sources:
        name = str(each.source.name)
        own_seed = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "little")
        stream = kind(each.prompts, 1, own_seed, shuffle, each.source.repeat)
        streams.append(WeightedStream(name, stream, each.source.weights))
    return PromptMixture(streams)


def check_enough(sources: Sequence[LoadedSource], prompts: int) -> None:
    """Raises ConfigError if no source repeats and all of them together have fewer prompts than will be drawn."""
    there = sum(len(each.prompts) for each in sources)
    if sources and there < prompts and not any(each.source.repeat for each in sources):
        raise ConfigError(
            f"the run draws {prompts} prompts (train.iterations × train.prompts_per_iteration) and data.sources have "
            f"{there}, none of them with repeat: true: let one repeat, or train fewer iterations"
        )
