"""The next iteration's groups, made while this one is trained."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from sppo_megatron.cluster.interrupt import Interrupted
from sppo_megatron.rollout.collector import Episodes
from sppo_megatron.rollout.source import SampledGroups, SourceState
from sppo_megatron.types import Group


class GroupsAhead:
    """A GroupSource that makes the first groups of iteration i + 1 while i is trained, from the weights of then.

    iterations: of the run; nothing is begun beyond the last. The engine must be one that works ahead.
    """

    def __init__(self, source: SampledGroups, iterations: int) -> None:
        self._source = source
        self._iterations = iterations
        self._under_way: Episodes | None = None
        self._before = SourceState()  # it was begun
        self._made: list[Group] | None = None

    def next(self, iteration: int) -> list[Group]:
        """See GroupSource."""
        self.settle()
        groups, self._made = self._made, None
        return self._source.next(iteration) if groups is None else groups

    def more(self, iteration: int, place: int, count: int) -> list[Group]:
        """See GroupSource: from the weights of now."""
        return self._source.more(iteration, place, count)

    def give_back(self, count: int) -> None:
        """See GroupSource. Nothing may have begun."""
        self._source.give_back(count)

    def begin(self, iteration: int) -> None:
        """See GroupSource."""
        if iteration < self._iterations:
            self._before = self._source.state()
            self._under_way = self._source.start(iteration)

    def settle(self) -> None:
        """See GroupSource. The groups stay until they are taken."""
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            try:
                self._made = under_way.result()
            except Interrupted:
                self._source.load_state(self._before)
                raise

    def state(self) -> SourceState:
        """See GroupSource. Groups that aren't there when the job is told to stop are given up, and made later."""
        with contextlib.suppress(Interrupted):
            self.settle()
        return replace(self._source.state(), ahead=None if self._made is None else tuple(self._made))

    def load_state(self, state: SourceState) -> None:
        """See GroupSource. What is under way is given up."""
        self._under_way = None
        self._source.load_state(state)
        self._made = None if state.ahead is None else list(state.ahead)
