"""How far a mean of a few outcomes can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z_95 = 1.959963984540054  # the standard normal's 97.5% quantile


def wilson_interval(mean: float, count: float, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval (JASA 1927) of a probability whose estimate over `count` independent outcomes is `mean`.

    count may be a number of independent outcomes that would be as uncertain (`clustered_share_interval`).
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


def clustered_interval(values: Sequence[float], z: float = Z_95) -> tuple[float, float]:
    """mean ± z · standard error of a mean over prompts. values: one for each, such as the mean of its answers' rewards.

    Answers to one prompt aren't independent of each other, and prompts are: the error is the cluster-robust one (Liang
    and Zeger, Biometrika 1986; "Adding Error Bars to Evals", arXiv:2411.00640), which for prompts that count the same
    is the spread of their values over √prompts. Raises ValueError for fewer than two.
    """
    count = len(values)
    if count < 2:
        raise ValueError(f"values: must be of at least 2 prompts, got {count}")
    mean = math.fsum(values) / count
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count * (count - 1)))
    return mean - z * error, mean + z * error


def clustered_share_interval(values: Sequence[float], answers: int, z: float = Z_95) -> tuple[float, float]:
    """As `clustered_interval`, of values in [0, 1]: Wilson's interval of so many independent answers as would be as
    uncertain, mean · (1 − mean) over the squared cluster-robust error. It stays inside of [0, 1] and is never empty.

    answers: to all prompts together; more of them can't be independent. If all values are alike, prompts are counted.
    With one answer a prompt it is Wilson's. Raises ValueError for no values, or one outside of [0, 1].
    """
    count = len(values)
    if not count or not all(0.0 <= value <= 1.0 for value in values):
        raise ValueError(f"values: must be in [0, 1], of at least one prompt, got {list(values)[:10]}")
    mean = min(1.0, math.fsum(values) / count)
    variance = math.fsum((value - mean) ** 2 for value in values) / count**2
    if variance <= 1e-18:
        return wilson_interval(mean, count, z)
    return wilson_interval(mean, min(mean * (1 - mean) / variance, answers), z)
