"""One response in the making, turn by turn."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sppo_megatron.engines.base import Continuation, Request
from sppo_megatron.types import Prompt, Response


@dataclass(frozen=True, eq=False)
class Episode:
    """prompt, place, sample: the prompt, its place in the iteration and the number of the sample of it.

    token_ids: int32 [n] of all turns. log_probs: float32 [n] nats, 0 for the environment's tokens. loss_mask: bool [n],
    True for the policy's. weight_version: of the oldest weights that any token is from. num_turns: of the policy.
    """

    prompt: Prompt
    place: int
    sample: int
    token_ids: np.ndarray
    log_probs: np.ndarray
    loss_mask: np.ndarray
    finish_reason: str
    weight_version: int
    num_turns: int = 1

    @staticmethod
    def begin(prompt: Prompt, place: int, sample: int, first: Continuation) -> Episode:
        """The policy's first turn."""
        mask = np.ones(len(first.token_ids), bool)
        end, version = first.finish_reason, first.weight_version
        return Episode(prompt, place, sample, first.token_ids, first.log_probs, mask, end, version)

    def answered(self, token_ids: np.ndarray) -> Episode:
        """With the environment's tokens (int32 [m]) behind it."""
        return replace(
            self,
            token_ids=np.concatenate([self.token_ids, np.asarray(token_ids, np.int32)]),
            log_probs=np.concatenate([self.log_probs, np.zeros(len(token_ids), np.float32)]),
            loss_mask=np.concatenate([self.loss_mask, np.zeros(len(token_ids), bool)]),
        )

    def continued(self, turn: Continuation) -> Episode:
        """With another turn of the policy behind it."""
        return replace(
            self,
            token_ids=np.concatenate([self.token_ids, turn.token_ids]),
            log_probs=np.concatenate([self.log_probs, turn.log_probs]),
            loss_mask=np.concatenate([self.loss_mask, np.ones(len(turn.token_ids), bool)]),
            finish_reason=turn.finish_reason,
            weight_version=min(self.weight_version, turn.weight_version),
            num_turns=self.num_turns + 1,
        )

    def cut_off(self) -> Episode:
        """Ended for want of room, though the environment had something to say."""
        return replace(self, finish_reason="length")

    def next_request(self, seed: int, iteration: int, max_length: int) -> Request:
        """For the policy's next turn. max_length: tokens of all turns together."""
        return Request(
            np.concatenate([self.prompt.token_ids, self.token_ids]),
            (seed, iteration, self.place, self.sample, self.num_turns),
            max_new_tokens=max_length - len(self.token_ids),
        )

    def response(self, text: str | None = None) -> Response:
        """What is scored and trained on."""
        return Response(
            self.token_ids,
            text,
            self.log_probs,
            finish_reason=self.finish_reason,
            policy_version=self.weight_version if self.weight_version >= 0 else None,
            loss_mask=None if self.loss_mask.all() else self.loss_mask,
        )
