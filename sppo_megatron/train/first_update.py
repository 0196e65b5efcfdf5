"""The first sign of a broken parallel path: before an iteration's first update π_θ is π_t, in both passes.

Measured per token, since rounding errors of many tokens cancel while those of a wrong layout don't get smaller: lost
partial sums, wrong positions or another rank's activations show 0.1 nats per token and more even in a model that hardly
looks at its context, and rounding in bf16 stays below 0.02.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from sppo_megatron.config import PrecisionConfig
from sppo_megatron.errors import TrainingError

# nats: the root mean square of log π_θ − log π_t over tokens
_ROUNDING = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 2e-2}
_FP8_FACTOR = 4.0  # scales move between the two passes
_SEQUENCE_FACTOR = 4.0  # standard deviations that a sequence of independent errors may show


def check_first_log_ratio(
    metrics: Mapping[str, float], longest: int, precision: PrecisionConfig, iteration: int
) -> None:
    """Raises TrainingError if the training pass doesn't compute what the log-prob pass did.

    metrics: of an iteration's first step; kl_k3 is the mean of e^d − 1 − d ≈ d²/2 over tokens, d = log π_θ − log π_t.
    longest: tokens of the longest response. One broken sequence among many shows in log_ratio_abs_max, |Σ_t d|.
    """
    bound = _ROUNDING[precision.dtype] * (_FP8_FACTOR if precision.fp8 is not None else 1.0)
    found = {
        "root mean square of log π_θ − log π_t over tokens": (math.sqrt(2 * max(0.0, metrics["kl_k3"])), bound),
        f"largest |log π_θ − log π_t| of a response (of up to {longest} tokens)": (
            metrics["log_ratio_abs_max"],
            _SEQUENCE_FACTOR * bound * math.sqrt(max(1, longest)),
        ),
    }
    for what, (value, limit) in found.items():
        if not value <= limit:
            raise TrainingError(
                f"before the first update of iteration {iteration} the {what} is {value:.3g} nats and should be 0 up "
                f"to rounding (bound {limit:.3g}): the training pass does not compute what the log-prob pass does; "
                "try another layout and report it"
            )
