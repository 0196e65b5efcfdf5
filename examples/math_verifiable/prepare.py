"""Makes what the example starts from: arithmetic with its answers, a tokenizer, a small model that knows half of it.

A problem is a sum or a difference of a number below 100 and one below 10 ("47+6=" -> "53"). The model is warmed up
until about half of the held-out problems are solved; the verifier teaches it the rest. Everything is cached in the
output folder: a second call with the same settings does nothing.

    python -m examples.math_verifiable.prepare --output outputs/math_verifiable
"""

from __future__ import annotations

import random

from examples.demo import prepare as demo

VOCABULARY = [*demo.VOCABULARY, "+", "-"]


def make_problems(seed: int) -> list[demo.Problem]:
    """Every sum and every difference that is not negative, in an order that the seed decides."""
    numbers = [(a, b) for a in range(100) for b in range(10)]
    problems = [(f"{a}+{b}{demo.ANSWER}", str(a + b)) for a, b in numbers]
    problems += [(f"{a}-{b}{demo.ANSWER}", str(a - b)) for a, b in numbers if a >= b]
    random.Random(seed).shuffle(problems)
    return problems


if __name__ == "__main__":
    demo.prepare(__doc__, "outputs/math_verifiable", make_problems, VOCABULARY)
