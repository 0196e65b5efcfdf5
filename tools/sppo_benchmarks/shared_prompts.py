"""Log-probs and a training step of responses that share their prompts, side by side with whole sequences.

    python -m sppo_benchmarks.shared_prompts --shapes 1024,256,8 256,64,8 128,1024,8
    torchrun --nproc-per-node 2 -m sppo_benchmarks.shared_prompts --sequence-parallel      # tensor parallel

Each shape is the tokens of a prompt, the tokens of a response and the responses of a prompt. Both variants get packs of
the same number of tokens at most, --tokens or one whole prompt with its responses, and give the same losses.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from sppo_benchmarks import train_step
from sppo_benchmarks.measuring import CLOCKS, machine, measure, print_table, write_json
from sppo_megatron.batch.sequences import make_sequences
from sppo_megatron.batch.training_batch import TrainingBatch, regression_columns, single_units
from sppo_megatron.policy.initialize import initialize_distributed, local_device

COLUMNS = [
    "shape",
    "work",
    "whole s",
    "shared s",
    "ratio",
    "whole MiB",
    "shared MiB",
    "tokens ratio",
    "loss difference",
]


def random_batch(prompt: int, response: int, count: int, prompts: int, vocab: int) -> TrainingBatch:
    random = np.random.default_rng(0)
    of_prompts = list(random.integers(0, vocab, (prompts, prompt)))
    responses = list(random.integers(0, vocab, (prompts * count, response)))
    sequences = make_sequences(of_prompts, responses, np.repeat(np.arange(prompts), count).tolist())
    columns = regression_columns(random.normal(size=len(responses)))
    return TrainingBatch(sequences, np.full(sequences.total, -10, np.float32), columns)


def benchmark(args: argparse.Namespace, shape: tuple[int, int, int]) -> list[dict[str, Any]]:
    prompt, response, count = shape
    args.tokens = max(args.tokens, prompt + count * response)
    policy = train_step.build_policy(args, shared_prompts=True)
    batch = random_batch(prompt, response, count, args.prompts, args.vocab)
    units = single_units(len(batch.sequences))
    losses: dict[bool, float] = {}

    def step(shares: bool) -> None:
        policy._layout = replace(policy._layout, shared_prompts=shares)
        losses[shares] = policy.train_step(batch, units)["loss"]

    def log_probs(shares: bool) -> None:
        policy._layout = replace(policy._layout, shared_prompts=shares)
        policy.compute_log_probs(batch.sequences)

    rows = []
    for name, work in (("log-probs", log_probs), ("step", step)):
        variants: dict[str, Callable[[], Any]] = {str(shares): partial(work, shares) for shares in (False, True)}
        whole, shared = measure(variants, args.rounds, local_device(), args.clock).values()
        row = {"shape": ",".join(map(str, shape)), "work": name, "ratio": whole["seconds"] / shared["seconds"]}
        row |= {f"{kind} s": figures["seconds"] for kind, figures in (("whole", whole), ("shared", shared))}
        row |= {f"{kind} MiB": figures["extra_mib"] for kind, figures in (("whole", whole), ("shared", shared))}
        rows.append(row | {"tokens ratio": count * (prompt + response) / (prompt + count * response)})
    rows[-1]["loss difference"] = abs(losses[True] - losses[False]) / abs(losses[False])
    policy.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["1024,256,8", "256,64,8", "128,1024,8"])
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=256, help="a multiple of 64")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--tied", action="store_true", help="the head shares the embedding's weight")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--tokens", type=int, default=1024, help="of one packed micro-batch, at least")
    parser.add_argument("--sequence-parallel", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="process: CPU time, for a busy machine")
    parser.add_argument("--json", help="file to write the figures to")
    args = parser.parse_args()
    args.fp8_recipe, args.logits_budget_mib = None, 512.0
    torch.set_num_threads(args.threads)
    initialize_distributed(timeout_minutes=10)
    rows = []
    for shape in args.shapes:
        prompt, response, count = map(int, shape.split(","))
        rows += benchmark(args, (prompt, response, count))
    if int(os.environ.get("RANK", "0")) == 0:
        print_table(rows, COLUMNS)
        write_json(args.json, {"machine": machine(local_device()), "arguments": vars(args), "rows": rows})
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
