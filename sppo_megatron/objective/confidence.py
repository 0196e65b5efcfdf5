"""How far a mean of a few outcomes can be trusted."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054  # the standard normal's 97.5% quantile


def wilson_interval(mean: float, count: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval (JASA 1927) of a probability whose estimate over `count` independent outcomes is `mean`.

    Outcomes may be anything in [0, 1] (ties, a judge's probabilities): their variance is at most the mean · (1 − mean)
    of zeros and ones, for which it is made. Unlike mean ± z·σ it isn't empty if all outcomes are alike.
    Returns (low, high). Raises ValueError for a mean outside [0, 1] or count below 1.
    """
    if not 0.0 <= mean <= 1.0:
        raise ValueError(f"mean: must be in [0, 1], got {mean}")
    if count < 1:
        raise ValueError(f"count: must be at least 1, got {count}")
    shrunk = (mean + z * z / (2 * count)) / (1 + z * z / count)
    margin = z / (1 + z * z / count) * math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
    return max(0.0, shrunk - margin), min(1.0, shrunk + margin)
