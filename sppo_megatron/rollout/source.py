"""Where the trainer's groups come from, one iteration after the other, and what a checkpoint must know of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sppo_megatron.data.prompt_stream import PromptStream
from sppo_megatron.data.rollout_file import read_groups, write_groups
from sppo_megatron.errors import ConfigError
from sppo_megatron.rollout.collector import Collector, Episodes
from sppo_megatron.types import Group

_POSITION = "prompts.json"
_AHEAD = "rollouts_ahead.parquet"


@dataclass(frozen=True)
class SourceState:
    """position: prompts that were handed out for iterations that are made or begun.

    ahead: the groups of the iteration after the current one, if they are made already.
    """

    position: int = 0
    ahead: tuple[Group, ...] | None = None

    def write(self, folder: Path) -> None:
        """Adds it to a checkpoint."""
        (folder / _POSITION).write_text(json.dumps({"position": self.position}), encoding="utf-8")
        if self.ahead is not None:
            write_groups(folder / _AHEAD, list(self.ahead))

    @staticmethod
    def read(folder: Path) -> SourceState:
        """Raises ConfigError if the folder holds none."""
        try:
            position = int(json.loads((folder / _POSITION).read_text(encoding="utf-8"))["position"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{folder} doesn't say where its prompts stand: {error}") from error
        ahead = tuple(read_groups(folder / _AHEAD)) if (folder / _AHEAD).exists() else None
        return SourceState(position, ahead)


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
        """Waits for what is under way: before the weights change, which it must not mix."""
        ...

    def state(self) -> SourceState:
        """Where it stands before the next `next`. Waits as `settle` does."""
        ...

    def load_state(self, state: SourceState) -> None:
        """Goes back, or on, to where `state` was."""
        ...


class SampledGroups:
    """Draws prompts from a stream and has them answered. first_count: prompts of an iteration's first groups, by
    default the stream's prompts_per_iteration."""

    def __init__(self, collector: Collector, prompts: PromptStream, first_count: int | None = None) -> None:
        self._collector = collector
        self._prompts = prompts
        self._first_count = first_count

    def next(self, iteration: int) -> list[Group]:
        """See GroupSource."""
        return self.start(iteration).result()

    def start(self, iteration: int) -> Episodes:
        """Begins with the next prompts."""
        return self._collector.start(self._prompts.next(self._first_count), iteration)

    def more(self, iteration: int, place: int, count: int) -> list[Group]:
        """See GroupSource."""
        return self._collector.collect(self._prompts.next(count), iteration, place)

    def give_back(self, count: int) -> None:
        """See GroupSource."""
        self._prompts.position -= count

    def begin(self, iteration: int) -> None:
        """See GroupSource: nothing is made ahead."""

    def settle(self) -> None:
        """See GroupSource: nothing is under way."""

    def state(self) -> SourceState:
        """See GroupSource."""
        return SourceState(self._prompts.position)

    def load_state(self, state: SourceState) -> None:
        """See GroupSource."""
        self._prompts.load_state_dict({"position": state.position})
