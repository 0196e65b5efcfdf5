"""What FP8 does to the log-probs: the same responses under the same weights, with FP8 and without."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sppo_megatron.batch.sequences import Sequences
from sppo_megatron.config import PrecisionConfig
from sppo_megatron.errors import TrainingError
from sppo_megatron.policy.model.fp8 import without_fp8
from sppo_megatron.policy.policy import Policy


@dataclass(frozen=True)
class Fp8Probe:
    """Compares log-probs with those in precision.dtype, of the first fp8_probe_samples responses that are given."""

    policy: Policy
    precision: PrecisionConfig

    def __call__(self, sequences: Sequences, log_probs: np.ndarray) -> dict[str, float]:
        """The figures of `log_prob_differences`; {} without tokens to compare. Collective.

        log_probs: float32 [T] nats, from `Policy.compute_log_probs` of the same weights.
        Raises TrainingError, the same on every rank, if fp8_log_ratio_diff_mean is above fp8_max_log_ratio_diff: a
        bias of each token is multiplied by the length of the response in SPPO's log-ratio.
        """
        probed, bound = sequences.first(self.precision.fp8_probe_samples), self.precision.fp8_max_log_ratio_diff
        if not probed.lengths.any():
            return {}
        with without_fp8(self.policy.config):
            reference, _ = self.policy.compute_log_probs(probed)
        figures = log_prob_differences(probed, log_probs[: probed.total], reference)
        difference = figures["fp8_log_ratio_diff_mean"]
        if bound is not None and not difference <= bound:
            raise TrainingError(
                f"FP8 changes the log-prob of a response by {difference:.3g} nats on average, above "
                f"precision.fp8_max_log_ratio_diff={bound:g} (mean of a token: {figures['fp8_log_prob_diff']:.3g}): "
                "choose a finer recipe (precision=fp8_blockwise), keep layers in bf16 "
                "(precision.first_last_layers_bf16=true), or set precision=bf16"
            )
        return figures


def build_fp8_probe(policy: Policy, precision: PrecisionConfig) -> Fp8Probe | None:
    """None if there is nothing to compare."""
    return Fp8Probe(policy, precision) if precision.fp8 is not None and precision.fp8_probe_samples > 0 else None


def log_prob_differences(sequences: Sequences, log_probs: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """log_probs − reference, float32 [T] nats each, in numbers; at least one token counts.

    fp8_log_prob_diff: the mean over tokens, a bias. fp8_log_prob_diff_mean, _max: of a token's absolute value.
    fp8_log_ratio_diff_mean, _max: of the absolute value of a response's sum; responses without tokens are left out.
    """
    difference = log_probs.astype(np.float64) - reference
    tokens = difference if sequences.loss_mask is None else difference[sequences.loss_mask]
    responses = np.abs(sequences.sums(difference)[sequences.lengths > 0])
    return {
        "fp8_log_prob_diff": float(tokens.mean()),
        "fp8_log_prob_diff_mean": float(np.abs(tokens).mean()),
        "fp8_log_prob_diff_max": float(np.abs(tokens).max()),
        "fp8_log_ratio_diff_mean": float(responses.mean()),
        "fp8_log_ratio_diff_max": float(responses.max()),
    }
