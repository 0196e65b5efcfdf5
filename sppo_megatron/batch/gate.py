"""The gate between rollouts and training: what was sampled must be what is trained."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sppo_megatron.batch.micro_batches import Sample
from sppo_megatron.batch.samples import weight_by_importance
from sppo_megatron.config import MismatchConfig, ObjectiveConfig
from sppo_megatron.errors import TrainingError
from sppo_megatron.objective import Mismatch, rollout_mismatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MismatchGate:
    """Looks at every iteration before its first step, as configured in `rollout.mismatch`."""

    config: MismatchConfig
    objective: ObjectiveConfig

    def check(
        self, samples: Sequence[Sample], iteration: int, version: int | None = None
    ) -> tuple[set[int], dict[str, float]]:
        """(indices of responses to leave out, metrics). samples carry their old_log_probs.

        version: of the weights that gave those; where any response is of another, the difference is no fault and no
        action follows. Responses without rollout_log_probs (some replays) are not looked at. Weights samples in place
        where the action says so. Raises TrainingError where it says stop.
        """
        seen = [sample for sample in samples if sample.rollout_log_probs is not None]
        if not seen:
            return set(), {}
        mismatch = rollout_mismatch(
            torch.from_numpy(np.concatenate([sample.old_log_probs for sample in seen])),
            torch.from_numpy(np.concatenate([sample.rollout_log_probs for sample in seen])),
            [len(sample.response_token_ids) for sample in seen],
            self.config.token_bound,
        )
        if any(sample.policy_version not in (None, version) for sample in seen):
            return set(), _metrics(mismatch, set(), False)
        excess = self._excess(mismatch)
        dropped = self._dropped(seen, mismatch) if self.config.action == "drop" else set()
        if excess is not None:
            self._act(seen, f"iteration {iteration}: the rollout engine's log-probs are not the trainer's: {excess}")
        if dropped:
            logger.warning(
                "iteration %d: %d of %d responses dropped by rollout.mismatch", iteration, len(dropped), len(seen)
            )
        return dropped, _metrics(mismatch, dropped, excess is not None)

    def _excess(self, mismatch: Mismatch) -> str | None:
        c = self.config
        found = []
        if mismatch.mean > c.mean_bound:
            found.append(f"mean |difference| {mismatch.mean:.3g} nats per token (mean_bound {c.mean_bound:g})")
        if mismatch.share_over > c.share_bound:
            found.append(
                f"{mismatch.share_over:.1%} of tokens differ by more than {c.token_bound:g} nats "
                f"(share_bound {c.share_bound:.1%})"
            )
        return " and ".join(found) or None

    def _dropped(self, samples: Sequence[Sample], mismatch: Mismatch) -> set[int]:
        over = (mismatch.sequence_mean > self.config.mean_bound) | (mismatch.sequence_sum > self.config.sequence_bound)
        return {sample.index for sample, is_over in zip(samples, over.tolist(), strict=True) if is_over}

    def _act(self, samples: Sequence[Sample], message: str) -> None:
        if self.config.action == "stop":
            raise TrainingError(
                f"{message}. Nothing was trained on them. Look at rollout.verify=true, the engine's precision and its "
                "sampling settings; go on with rollout.mismatch.action=importance_weight or a higher bound"
            )
        logger.warning("%s", message)
        if self.config.action == "importance_weight" and self.objective.importance_weight is None:
            for sample in samples:
                weight_by_importance(sample, "sequence", self.objective.importance_cap)


def _metrics(mismatch: Mismatch, dropped: set[int], exceeded: bool) -> dict[str, float]:
    sequence_sum = mismatch.sequence_sum
    return {
        "mismatch_mean": mismatch.mean,
        "mismatch_max": mismatch.max,
        "mismatch_k3": mismatch.k3,
        "mismatch_share_over": mismatch.share_over,
        "mismatch_sequence_mean": float(sequence_sum.mean()),
        "mismatch_sequence_max": float(sequence_sum.max()),
        "mismatch_exceeded": float(exceeded),
        "mismatch_dropped": float(len(dropped)),
    }
