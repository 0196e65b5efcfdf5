"""The randomness of a response: a pure function of its seed, iteration and place, not of its batch or its rank."""

from __future__ import annotations

import numpy as np


def sample_uniforms(seed: int, iteration: int, place: int, sample: int, count: int) -> np.ndarray:
    """float64 [count] in [0, 1): the randomness of one response, a pure function of the four integers."""
    return np.random.default_rng([seed, iteration, place, sample]).random(count)


def request_seed(seed: int, iteration: int, place: int) -> int:
    """The seed of one prompt's responses, below 2⁴⁸: a pure function of the three integers. Sample k adds k to it."""
    return int(np.random.SeedSequence([seed, iteration, place]).generate_state(1, np.uint64)[0] >> np.uint64(16))
