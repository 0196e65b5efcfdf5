"""Where groups come from, by the value of rollout.engine: an engine that samples them, or files that hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sppo_megatron.config import Config
from sppo_megatron.config.checks import check_config, check_evaluation, check_generation
from sppo_megatron.config.objective import learns_from_humans
from sppo_megatron.config.sources import Source, training_sources, with_rewards_of_sources
from sppo_megatron.config.values import check_values
from sppo_megatron.engines.kind import EngineKind
from sppo_megatron.engines.megatron import MEGATRON
from sppo_megatron.engines.registry import ENGINES
from sppo_megatron.errors import ConfigError, raise_problems
from sppo_megatron.rewards.choices import check_choices
from sppo_megatron.rewards.registry import REWARDS, check_reward, check_scorer, compares

if TYPE_CHECKING:
    from sppo_megatron.data.sources import LoadedSource
    from sppo_megatron.rollout.source import GroupSource
    from sppo_megatron.types import Group

    class StoredGroups(GroupSource, Protocol):
        """A GroupSource whose groups are known before the run. sources: the prompts that it draws from; [] if it
        draws none."""

        sources: list[LoadedSource]

        def responses_of_groups(self, iteration: int) -> list[int]:
            """The number of responses of each group of an iteration."""
            ...

        def bounds(self) -> tuple[int, int]:
            """The largest token id, and the tokens of the longest prompt with a response."""
            ...


@dataclass(frozen=True)
class StoredKind:
    """A source of groups that were made before.

    open: (config, tokenizer) -> the source; raises ConfigError for what can't be read. check: config -> what is
    wrong with its own keys, one message each.
    """

    name: str
    open: Callable[[Config, Any], StoredGroups]
    check: Callable[[Config], Iterator[str]]


def _check_replay(config: Config) -> Iterator[str]:
    path = config.rollout.path
    if path is None:
        yield "rollout.engine=replay needs rollout.path: a rollout file, or a folder with one per iteration"
    elif not Path(path).exists():
        yield f"rollout.path={path} does not exist"


def _open_replay(config: Config, tokenizer: Any) -> StoredGroups:
    from sppo_megatron.rollout.replay import Replay

    assert config.rollout.path is not None, "checked"
    return Replay(config.rollout.path, config.train.prompts_per_iteration, config.train.iterations)


def _check_recorded(config: Config) -> Iterator[str]:
    engine, sources = f"rollout.engine={config.rollout.engine}", training_sources(config.data)
    if not sources:
        yield f"{engine} needs data.train_path or data.sources, which hold its records"
    if config.rollout.rescore:
        yield f"{engine} takes its responses as they are: set rollout.rescore to false"
    if any(source.data.format is not None for source in sources):
        yield f"{engine} finds its columns itself: set data.format to null"


def _check_demonstrations(config: Config) -> Iterator[str]:
    from sppo_megatron.objective.registry import objective_class
    from sppo_megatron.objective.sft import Sft

    yield from _check_recorded(config)
    if objective_class(vars(config.objective)) is not Sft:
        yield "rollout.engine=demonstrations has one answer to a prompt, and nothing to compare: set objective=sft"


def _check_ratings(config: Config) -> Iterator[str]:
    import torch

    from sppo_megatron.objective.base import Units
    from sppo_megatron.objective.registry import build_objective

    yield from _check_recorded(config)
    try:
        objective = build_objective(vars(config.objective))
        targets = objective.columns(torch.tensor([1.0, 0.0]).double(), torch.arange(2))["target"]
    except ValueError:  # which check_objective tells
        return
    if objective.units is not Units.SINGLE or targets[0] == targets[1]:
        yield (
            "rollout.engine=ratings has one answer to a prompt, which is good or bad: set objective=kto, or "
            "objective=sppo with objective.baseline=constant"
        )


def _open_preferences(config: Config, tokenizer: Any) -> StoredGroups:
    from sppo_megatron.data.preferences import load_preferences

    humans = learns_from_humans(config.objective)
    return _open_recorded(config, tokenizer, partial(load_preferences, chosen_is_human=humans))


def _open_ratings(config: Config, tokenizer: Any) -> StoredGroups:
    from sppo_megatron.data.ratings import load_ratings

    return _open_recorded(config, tokenizer, load_ratings)


def _open_demonstrations(config: Config, tokenizer: Any) -> StoredGroups:
    from sppo_megatron.data.demonstrations import load_demonstrations

    return _open_recorded(config, tokenizer, load_demonstrations)


def _open_recorded(config: Config, tokenizer: Any, load: Callable[[Source, Any, int], list[Group]]) -> StoredGroups:
    from sppo_megatron.data.sources import LoadedSource, of_every_source
    from sppo_megatron.rollout.recorded import RecordedGroups

    if tokenizer is None:
        raise ConfigError(
            f"rollout.engine={config.rollout.engine} reads text and model.hf_path={config.model.hf_path} has no "
            "tokenizer: save one"
        )
    sources, limit, train = training_sources(config.data), config.rollout.max_response_length, config.train
    groups = of_every_source(sources, lambda source: load(source, tokenizer, limit))
    loaded = [LoadedSource(source, [g.prompt for g in each]) for source, each in zip(sources, groups, strict=True)]
    everything = [group for each in groups for group in each]
    return RecordedGroups(loaded, everything, train.prompts_per_iteration, train.seed, train.shuffle)


DEMONSTRATIONS = StoredKind("demonstrations", _open_demonstrations, _check_demonstrations)
PREFERENCES = StoredKind("preferences", _open_preferences, _check_recorded)
RATINGS = StoredKind("ratings", _open_ratings, _check_ratings)
REPLAY = StoredKind("replay", _open_replay, _check_replay)
STORED: dict[str, StoredKind] = {kind.name: kind for kind in (REPLAY, PREFERENCES, DEMONSTRATIONS, RATINGS)}
NAMES = (*ENGINES, *STORED)


def engine_kind(config: Config) -> EngineKind:
    """The configured engine. Beside stored groups the trainer's own model answers the prompts of evaluations."""
    return ENGINES.get(config.rollout.engine, MEGATRON)


def stored_kind(config: Config) -> StoredKind | None:
    """The configured source of stored groups; None if an engine samples."""
    return STORED.get(config.rollout.engine)


def check_run(config: Config, world_size: int) -> None:
    """Raises ConfigError listing every problem of a training run of world_size processes."""
    generates = stored_kind(config) is None
    more = chain(_problems(config, world_size), check_reward(config, generates), check_choices(config, generates))
    check_config(config, world_size, generates=generates, more=more)


def check_generating(config: Config, world_size: int) -> None:
    """As `check_run`, of what generating alone reads."""
    check_generation(config, world_size, more=_problems_of_sampling(config, world_size))


def check_evaluating(config: Config, world_size: int, *, has_opponents: bool) -> None:
    """As `check_run`, of what evaluating alone reads. has_opponents: whether answers to compare with are given."""
    reward = with_rewards_of_sources(config.reward, config.data)
    problems = [*_problems_of_sampling(config, world_size), *check_scorer(reward), *check_choices(config, False)]
    kind = REWARDS.get(reward.kind)
    if kind is not None and compares(reward) and not has_opponents:
        problems.append(f"reward.kind={kind.name} compares answers: give others to the same prompts (--against FILE)")
    if kind is not None and kind.for_humans:
        problems.append(f"reward.kind={kind.name} scores nothing: choose a reward")
    check_evaluation(config, world_size, more=problems)


def check_scoring(config: Config) -> None:
    """As `check_run`, of what scoring alone reads."""
    raise_problems([*check_values(config), *check_scorer(with_rewards_of_sources(config.reward, config.data))])


def _problems_of_sampling(config: Config, world_size: int) -> Iterator[str]:
    """Of a command that does nothing else."""
    stored = stored_kind(config)
    if stored is not None:
        yield f"rollout.engine={stored.name} makes no responses: choose {_listed(list(ENGINES))}"
    yield from _problems(config, world_size)


def _problems(config: Config, world_size: int) -> Iterator[str]:
    """Of the rollout's source, by what it says of itself."""
    r = config.rollout
    if r.engine in STORED:
        yield from STORED[r.engine].check(config)
    elif r.engine in ENGINES:
        yield from ENGINES[r.engine].check(config, world_size)
    else:
        yield f"rollout.engine={r.engine!r} is not known: choose one of {', '.join(NAMES)}"
        return
    engine = ENGINES.get(r.engine)
    if r.ahead and not (engine and engine.works_ahead):
        able = _listed([name for name, kind in ENGINES.items() if kind.works_ahead])
        yield f"rollout.ahead=true needs rollout.engine={able}: other engines share the trainer's processes"
    if r.verify and not (engine and engine.has_own_weights):
        yield f"rollout.verify=true is for engines with weights of their own, and rollout.engine={r.engine} has none"


def _listed(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
