"""The randomness of a sample: a pure function of its request's seed and its number, not of its batch or its rank."""

from __future__ import annotations

import numpy as np


def sample_uniforms(seed: tuple[int, ...], sample: int, count: int) -> np.ndarray:
    """float64 [count] in [0, 1). A longer one begins with a shorter one."""
    return np.random.default_rng([*seed, sample]).random(count)


def request_seed(seed: tuple[int, ...]) -> int:
    """One integer below 2⁴⁸ for all samples of a request. Sample k adds k to it."""
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(16))
