"""What a response is given to: an environment may answer it, and the policy continues; it answers nothing when done."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from sppo_megatron.types import Prompt, Response


class Environment(Protocol):
    """max_turns: how often the policy speaks at most, at least 1."""

    max_turns: int

    def answer(self, prompt: Prompt, response: Response) -> np.ndarray | None:
        """The tokens (int32 [n]) that follow the response so far, up to where the policy continues; None if it is done.

        response: of all turns so far, its last one stopped by itself; loss_mask says which tokens are the policy's.
        Asked on rank 0 alone.
        """
        ...


class SingleTurn:
    """The response is the episode."""

    max_turns = 1

    def answer(self, prompt: Prompt, response: Response) -> np.ndarray | None:
        """See Environment."""
        return None
