"""Groups as records hold them, instead of sampled ones: pairs that somebody compared, answers that somebody gave."""

from __future__ import annotations

from collections.abc import Sequence

from sppo_megatron.data.sources import LoadedSource, build_stream
from sppo_megatron.rollout.source import MadeBefore, SourceState
from sppo_megatron.types import Group


class RecordedGroups(MadeBefore):
    """A GroupSource of groups of equally many responses. They are drawn as prompts are: shuffled or in file order, each
    source by its weight.

    loaded: with the prompts of the groups. groups_per_iteration: None takes all of them in each iteration.
    Raises ConfigError as `build_stream`.
    """

    def __init__(
        self,
        loaded: Sequence[LoadedSource],
        groups: Sequence[Group],
        groups_per_iteration: int | None,
        seed: int,
        shuffle: bool,
    ) -> None:
        self.sources = list(loaded)
        self._groups = {(group.prompt.source, group.prompt.index): group for group in groups}
        self._count = groups_per_iteration or len(groups)
        self._responses = len(groups[0].responses)
        self._stream = build_stream(loaded, self._count, seed, shuffle)

    def responses_of_groups(self, iteration: int) -> list[int]:
        """See StoredGroups."""
        return [self._responses] * self._count

    def bounds(self) -> tuple[int, int]:
        """See StoredGroups."""
        largest = longest = 0
        for group in self._groups.values():
            human = group.prompt.human_token_ids
            for ids in [*(r.token_ids for r in group.responses), *([] if human is None else [human])]:
                largest = max(largest, int(group.prompt.token_ids.max()), int(ids.max()))
                longest = max(longest, len(group.prompt.token_ids) + len(ids))
        return largest, longest

    def next(self, iteration: int) -> list[Group]:
        """See GroupSource."""
        prompts = self._stream.next(self._count, iteration)
        return [self._groups[prompt.source, prompt.index] for prompt in prompts]

    def state(self) -> SourceState:
        """See GroupSource."""
        return SourceState(self._stream.state_dict())

    def load_state(self, state: SourceState) -> None:
        """See GroupSource."""
        self._stream.load_state_dict(state.prompts)
