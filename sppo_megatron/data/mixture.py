"""Several streams of prompts as one, in exact proportions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from sppo_megatron.data.prompt_stream import PromptStream
from sppo_megatron.errors import ConfigError
from sppo_megatron.types import Prompt


@dataclass(frozen=True)
class WeightedStream:
    """weights: of iterations 0, 1, ..., the last of which holds from then on; not negative, in any unit.

    A stream that ends has no weight from then on, and the others share what it had.
    """

    name: str
    stream: PromptStream
    weights: tuple[float, ...]

    def weight(self, iteration: int) -> Fraction:
        """Exactly as it was written: 0.1 is a tenth."""
        if self.stream.is_used_up:
            return Fraction(0)
        return Fraction(str(self.weights[min(iteration, len(self.weights) - 1)]))


def choose(shares: Mapping[str, Fraction], counts: Mapping[str, int]) -> str:
    """Whose turn it is, by R. Tijdeman's algorithm ("The chairman assignment problem", 1980).

    shares: positive, adding up to 1. counts: how often each had its turn. If it is always followed, each count differs
    from its share of all turns by at most 1 − 1/(2n − 2), n being the number of shares: by less than one turn, and by
    half a turn for two. Any stretch of two streams' turns is then within one turn of its proportions.
    """
    if len(shares) == 1:
        return next(iter(shares))
    slack = Fraction(1, 2 * len(shares) - 2)
    turn = sum(counts.values()) + 1
    owed = {name: share * turn - counts[name] for name, share in shares.items()}
    eligible = [name for name in shares if owed[name] >= slack]
    # The one that would be overdue first if it had to wait
    return min(eligible, key=lambda name: ((1 - slack - owed[name]) / shares[name], name))


class PromptMixture:
    """Deterministic and resumable at any prompt. Its state is where each stream stands, and the turns since the weights
    last changed: proportions count from there, so changed weights hold at once. Streams are told apart by their names:
    one that is new begins at its start, and one that is gone is forgotten.
    """

    def __init__(self, streams: Sequence[WeightedStream]) -> None:
        self._streams = {each.name: each for each in streams}
        self._shares: dict[str, Fraction] = {}
        self._counts: dict[str, int] = {}
        # What was drawn for this iteration, each with the turns before it
        self._iteration = -1
        self._drawn: list[tuple[str, dict[str, Fraction], dict[str, int]]] = []

    def next(self, count: int, iteration: int) -> list[Prompt]:
        """The next prompts of this iteration, from 0: `count`, or fewer if all streams end.

        Raises ConfigError if no stream has a prompt for it.
        """
        if iteration != self._iteration:
            self._iteration, self._drawn = iteration, []
        prompts: list[Prompt] = []
        while len(prompts) < count and self._take_up(iteration):
            name = choose(self._shares, self._counts)
            self._drawn.append((name, self._shares, self._counts))
            self._counts = {**self._counts, name: self._counts[name] + 1}
            prompts += self._streams[name].stream.next(1, iteration)
        if not prompts:
            raise ConfigError(
                f"iteration {iteration}: data.sources has no prompt left: give a source repeat: true or another weight"
            )
        return prompts

    def give_back(self, count: int) -> None:
        """The last `count` prompts of this iteration were not needed and are the next ones."""
        for _ in range(count):
            name, self._shares, self._counts = self._drawn.pop()
            self._streams[name].stream.give_back(1)

    @property
    def waiting(self) -> int:
        """Prompts that will be passed over when their turn comes."""
        return sum(each.stream.waiting for each in self._streams.values())

    def note(self, prompt: Prompt, taught: bool) -> None:
        """See AdaptiveStream: for the prompt's own source."""
        self._streams[str(prompt.source)].stream.note(prompt, taught)

    def state_dict(self) -> dict[str, Any]:
        return {
            "streams": {name: each.stream.state_dict() for name, each in self._streams.items()},
            "shares": {name: str(share) for name, share in self._shares.items()},
            "counts": self._counts,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, each in self._streams.items():
            each.stream.load_state_dict(state["streams"].get(name, {"position": 0}))
        self._shares = {name: Fraction(share) for name, share in state["shares"].items()}
        self._counts = {name: int(count) for name, count in state["counts"].items()}
        self._drawn = []

    def _take_up(self, iteration: int) -> bool:
        """Counts anew if the shares changed. False if no stream has any."""
        weights = {name: each.weight(iteration) for name, each in self._streams.items()}
        total = sum(weights.values())
        if not total:
            return False
        shares = {name: weight / total for name, weight in weights.items() if weight}
        if shares != self._shares:
            self._shares, self._counts = shares, dict.fromkeys(shares, 0)
        return True
