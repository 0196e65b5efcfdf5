"""The resumable stream that the trainer draws its prompts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sppo_megatron.errors import ConfigError
from sppo_megatron.types import Prompt


class PromptStream:
    """Endless epochs over the prompts; each epoch in an order that is a pure function of (seed, epoch).

    The only state is `position`, the number of prompts handed out so far, so a resumed stream continues exactly. An
    iteration may straddle two epochs, and may then hold the same prompt twice. repeat: False ends it after one epoch.
    """

    def __init__(
        self, prompts: list[Prompt], prompts_per_iteration: int, seed: int, shuffle: bool = True, repeat: bool = True
    ) -> None:
        if not prompts:
            raise ConfigError("the prompt data set is empty (or every prompt is over data.max_prompt_length)")
        if prompts_per_iteration < 1:
            raise ConfigError(f"prompts_per_iteration must be at least 1, got {prompts_per_iteration}")
        if prompts_per_iteration > len(prompts):
            raise ConfigError(
                f"train.prompts_per_iteration={prompts_per_iteration} is more than the {len(prompts)} prompts there "
                f"are; set it to {len(prompts)} or less"
            )
        if seed < 0:
            raise ConfigError(f"seed must not be negative, got {seed}")
        self.prompts = prompts
        self.prompts_per_iteration = prompts_per_iteration
        self.seed = seed
        self.shuffle = shuffle
        self.repeat = repeat
        self.position = 0
        self._cached_epoch = -1
        self._cached_order = np.empty(0, dtype=np.int64)

    @property
    def is_used_up(self) -> bool:
        return not self.repeat and self.position >= len(self.prompts)

    def next(self, count: int | None = None, iteration: int = 0) -> list[Prompt]:
        """The next `count` prompts, by default prompts_per_iteration, fewer if it ends; in any iteration the same."""
        count = self.prompts_per_iteration if count is None else count
        if not self.repeat:
            count = min(count, len(self.prompts) - self.position)
        prompts = [self._at(self.position + offset) for offset in range(count)]
        self.position += count
        return prompts

    def give_back(self, count: int) -> None:
        """The last `count` prompts were not needed and are the next ones."""
        self.position -= count

    @property
    def waiting(self) -> int:
        """Prompts that will be passed over when their turn comes: none."""
        return 0

    def note(self, prompt: Prompt, taught: bool) -> None:
        """Of a group of this prompt, whether its responses differed: here nothing follows from it."""

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        position = state["position"]
        if position < 0:
            raise ValueError(f"position must not be negative, got {position}")
        self.position = int(position)

    def _at(self, position: int) -> Prompt:
        epoch, place = divmod(position, len(self.prompts))
        return self.prompts[self._order(epoch)[place]]

    def _order(self, epoch: int) -> np.ndarray:
        if epoch != self._cached_epoch:
            self._cached_order = np.arange(len(self.prompts))
            if self.shuffle:
                # Sorting the raw words of a counter-based generator: numpy guarantees these bits in every version,
                # which it doesn't for `Generator.permutation`.
                key = np.array([self.seed, epoch], dtype=np.uint64)
                words = np.random.Philox(key=key).random_raw(len(self.prompts))
                self._cached_order = np.argsort(words, kind="stable")
            self._cached_epoch = epoch
        return self._cached_order
