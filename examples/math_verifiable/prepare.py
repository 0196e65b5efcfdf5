"""Makes what the example starts from: arithmetic with its answers, a tokenizer, a small model that knows half of it.

A problem is a sum or a difference of a number below 100 and one below 10 ("47+6=" -> "53"). The model is warmed up
until about half of the held-out problems are solved; the verifier teaches it the rest. Everything is cached in the
output folder: a second call with the same settings does nothing.

    python -m examples.math_verifiable.prepare --output outputs/math_verifiable
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch

from examples.demo import prepare as demo

VOCABULARY = [*demo.VOCABULARY, "+", "-"]
HELD_OUT = 256


def make_problems(seed: int) -> list[demo.Problem]:
    """Every sum and every difference that is not negative, in an order that the seed decides."""
    numbers = [(a, b) for a in range(100) for b in range(10)]
    problems = [(f"{a}+{b}{demo.ANSWER}", str(a + b)) for a, b in numbers]
    problems += [(f"{a}-{b}{demo.ANSWER}", str(a - b)) for a, b in numbers if a >= b]
    random.Random(seed).shuffle(problems)
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/math_verifiable"))
    parser.add_argument("--target", type=float, default=0.5, help="held-out share to stop the warm-up at")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    settings = {"target": options.target, "seed": options.seed}
    stamp = options.output / "prepared.json"
    if stamp.exists() and json.loads(stamp.read_text())["settings"] == settings:
        print(f"starting model: {options.output / 'start'} (cached)")
        return
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    problems = make_problems(options.seed)
    held_out, problems = problems[:HELD_OUT], problems[HELD_OUT:]
    demo.write_problems(options.output / "train.jsonl", problems)
    demo.write_problems(options.output / "eval.jsonl", held_out)
    tokenizer, model = demo.make_tokenizer(VOCABULARY), demo.make_model(options.seed)
    solved = demo.warm_up(model, problems, held_out, tokenizer, options.target)
    tokenizer.save_pretrained(options.output / "start")
    model.save_pretrained(options.output / "start")
    stamp.write_text(json.dumps({"settings": settings, "held_out_exact_match": solved}))
    print(f"starting model: {options.output / 'start'}, {solved:.0%} of the held-out problems solved")


if __name__ == "__main__":
    main()
