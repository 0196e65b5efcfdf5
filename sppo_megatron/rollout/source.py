"""Where the trainer's groups come from, one iteration after the other, and what a checkpoint must know of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sppo_megatron.data.rollout_file import read_groups, write_groups
from sppo_megatron.errors import ConfigError
from sppo_megatron.rollout.collector import Collector, Episodes
from sppo_megatron.types import Group, Prompt

_POSITION = "prompts.json"
_AHEAD = "rollouts_ahead.parquet"


@dataclass(frozen=True)
class SourceState:
    """prompts: where the prompts stand (`state_dict` of their stream), those of iterations begun included; {} of none.

    ahead: the groups of the iteration after the current one, if they are made already.
    """

    prompts: Mapping[str, Any] = field(default_factory=dict)
    ahead: tuple[Group, ...] | None = None

    def write(self, folder: Path) -> None:
        """Adds it to a checkpoint."""
        (folder / _POSITION).write_text(json.dumps(self.prompts), encoding="utf-8")
        if self.ahead is not None:
            write_groups(folder / _AHEAD, list(self.ahead))

    @staticmethod
    def read(folder: Path) -> SourceState:
        """Raises ConfigError if the folder holds none."""
        try:
            prompts = dict(json.loads((folder / _POSITION).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{folder} doesn't say where its prompts stand: {error}") from error
        ahead = tuple(read_groups(folder / _AHEAD)) if (folder / _AHEAD).exists() else None
        return SourceState(prompts, ahead)


class GroupSource(Protocol):
    """Groups, iteration by iteration. Every rank makes the same calls."""

    def next(self, iteration: int) -> list[Group]:
        """The first groups of `iteration`, from 0. Called for each in turn."""
        ...

    def more(self, iteration: int, place: int, count: int) -> list[Group]:
        """`count` further groups of the same iteration, the first of which has this place in it; fewer, or none, if
        there are no others."""
        ...

    def give_back(self, count: int) -> None:
        """The last `count` groups were not needed: their prompts will be the next ones."""
        ...

    def begin(self, iteration: int) -> None:
        """No more groups are wanted of the iterations before: what works ahead begins with this one."""
        ...

    def settle(self) -> None:
        """Waits for what is under way: before the weights change, which it must not mix. Raises Interrupted as
        Pending.result does."""
        ...

    def state(self) -> SourceState:
        """Where it stands before the next `next`. Waits for what is under way."""
        ...

    def load_state(self, state: SourceState) -> None:
        """Goes back, or on, to where `state` was."""
        ...


class MadeBefore:
    """The part of a GroupSource that is the same for all whose groups are there already: nothing is under way, and an
    iteration has its own groups and no others."""

    def more(self, iteration: int, place: int, count: int) -> list[Group]:
        """See GroupSource."""
        return []

    def give_back(self, count: int) -> None:
        """See GroupSource."""

    def begin(self, iteration: int) -> None:
        """See GroupSource."""

    def settle(self) -> None:
        """See GroupSource."""


class Prompts(Protocol):
    """What prompts are drawn from: `PromptStream`, `AdaptiveStream`, `PromptMixture`."""

    @property
    def waiting(self) -> int: ...

    def note(self, prompt: Prompt, taught: bool) -> None: ...

    def next(self, count: int, iteration: int) -> list[Prompt]: ...

    def give_back(self, count: int) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class SampledGroups:
    """Draws prompts and has them answered. first_count: prompts of an iteration's first groups."""

    def __init__(self, collector: Collector, prompts: Prompts, first_count: int) -> None:
        self._collector = collector
        self._prompts = prompts
        self._first_count = first_count

    def next(self, iteration: int) -> list[Group]:
        """See GroupSource."""
        return self.start(iteration).result()

    def start(self, iteration: int) -> Episodes:
        """Begins with the next prompts."""
        return self._collector.start(self._prompts.next(self._first_count, iteration), iteration)

    def more(self, iteration: int, place: int, count: int) -> list[Group]:
        """See GroupSource."""
        return self._collector.collect(self._prompts.next(count, iteration), iteration, place)

    def give_back(self, count: int) -> None:
        """See GroupSource."""
        self._prompts.give_back(count)

    def begin(self, iteration: int) -> None:
        """See GroupSource: nothing is made ahead."""

    def settle(self) -> None:
        """See GroupSource: nothing is under way."""

    def state(self) -> SourceState:
        """See GroupSource."""
        return SourceState(self._prompts.state_dict())

    def load_state(self, state: SourceState) -> None:
        """See GroupSource."""
        self._prompts.load_state_dict(state.prompts)
