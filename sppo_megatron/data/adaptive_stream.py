"""Prompts that teach nothing come less often."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sppo_megatron.data.prompt_stream import PromptStream
from sppo_megatron.types import Prompt


class AdaptiveStream(PromptStream):
    """A prompt whose last c groups taught nothing, because it is always solved or never, is passed over for 2^c − 1 of
    its turns, c at most `most`: it comes at every second, fourth, eighth, ... of them, and at each again as soon as one
    of its groups taught something. A prompt without a group yet is never passed over.

    Nothing is drawn by lot, so a resumed stream passes over the same prompts: the state holds, besides `position`, c
    and the turns left of each prompt that is waiting. An iteration may hold a prompt twice if most others wait.
    """

    def __init__(
        self,
        prompts: list[Prompt],
        prompts_per_iteration: int,
        seed: int,
        shuffle: bool = True,
        repeat: bool = True,
        *,
        most: int,
    ) -> None:
        super().__init__(prompts, prompts_per_iteration, seed, shuffle, repeat)
        if most < 1:
            raise ValueError(f"most: must be at least 1, got {most}")
        self.most = most
        self._useless: dict[int, int] = {}  # by the prompt's index: c
        self._turns_left: dict[int, int] = {}
        # Of each prompt handed out in this iteration: those passed over before it
        self._iteration = -1
        self._before: list[list[int]] = []

    @property
    def waiting(self) -> int:
        """Prompts that will be passed over when their turn comes."""
        return len(self._turns_left)

    def next(self, count: int | None = None, iteration: int = 0) -> list[Prompt]:
        """See PromptStream: those whose turn it is."""
        if iteration != self._iteration:
            self._iteration, self._before = iteration, []
        count = self.prompts_per_iteration if count is None else count
        found: list[Prompt] = []
        passed: list[int] = []
        while len(found) < count and (turn := super().next(1)):
            index = turn[0].index
            if index in self._turns_left:
                self._wait(index, self._turns_left[index] - 1)
                passed.append(index)
                continue
            self._before.append(passed)
            passed = []
            found += turn
        return found

    def give_back(self, count: int) -> None:
        """See PromptStream. Turns that others passed before them are theirs again."""
        for _ in range(count):
            passed = self._before.pop()
            super().give_back(1 + len(passed))
            for index in passed:
                self._wait(index, self._turns_left.get(index, 0) + 1)

    def note(self, prompt: Prompt, taught: bool) -> None:
        """Of a group of this prompt, in the order in which the prompts were handed out."""
        if taught:
            self._useless.pop(prompt.index, None)
            self._turns_left.pop(prompt.index, None)
            return
        count = self._useless[prompt.index] = min(self._useless.get(prompt.index, 0) + 1, self.most)
        self._wait(prompt.index, 2**count - 1)

    def state_dict(self) -> dict[str, Any]:
        waiting = {str(i): [count, self._turns_left.get(i, 0)] for i, count in sorted(self._useless.items())}
        return super().state_dict() | {"waiting": waiting}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Of a stream that wasn't adaptive too: then nothing is known of any prompt."""
        super().load_state_dict(state)
        waiting = {int(index): (int(count), int(turns)) for index, (count, turns) in state.get("waiting", {}).items()}
        self._useless = {index: min(count, self.most) for index, (count, _) in waiting.items()}
        self._turns_left = {index: min(turns, 2**self.most - 1) for index, (_, turns) in waiting.items() if turns}
        self._before = []

    def _wait(self, index: int, turns: int) -> None:
        if turns:
            self._turns_left[index] = turns
        else:
            self._turns_left.pop(index, None)
