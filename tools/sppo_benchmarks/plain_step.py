"""A training step and the log-probs of a real model on one CPU thread, beside a plain Hugging Face loop.

    python -m sppo_benchmarks.plain_step --model outputs/smollm2/SmolLM2-135M-Instruct.gguf --dtype bf16

The plain loop feeds the same sequences, all of one length, in batches without padding: full logits, log-softmax in
fp32, the squared loss, AdamW with the parameters' own precision. Ours packs them, with the prompts of a group shared or
not.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from sppo_benchmarks.measuring import CLOCKS, machine, measure, print_table, write_json
from sppo_megatron.batch.sequences import make_sequences
from sppo_megatron.batch.training_batch import TrainingBatch, regression_columns, single_units
from sppo_megatron.config import Config
from sppo_megatron.hf.hf_checkpoint import HFTensors
from sppo_megatron.hf.hf_config import load_hf_config, read_architecture
from sppo_megatron.hf.hf_folder import resolve_hf_folder
from sppo_megatron.hf.hf_model import open_weights
from sppo_megatron.policy.initialize import initialize_distributed, initialize_model_parallel, local_device
from sppo_megatron.policy.model.mapped import MappedModel
from sppo_megatron.policy.policy import Policy

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build_policy(args: argparse.Namespace, folder: Path) -> Policy:
    run = Config()
    run.model.hf_path, run.precision.dtype = str(folder), args.dtype
    run.train.max_tokens_per_micro_batch, run.train.shared_prompts = args.tokens, True
    run.optimizer.lr = 1e-9  # every variant sees the same weights
    architecture = read_architecture(load_hf_config(str(folder)))
    tensors: HFTensors = open_weights(folder, architecture)
    groups = initialize_model_parallel(run.parallelism, seed=0)
    return Policy(run, MappedModel(architecture, tensors, run.model.make_vocab_size_divisible_by), groups, 1000)


def random_batch(args: argparse.Namespace, vocab: int) -> TrainingBatch:
    random = np.random.default_rng(0)
    prompts = list(random.integers(0, vocab, (args.prompts, args.prompt)))
    responses = list(random.integers(0, vocab, (args.prompts * args.samples, args.response)))
    sequences = make_sequences(prompts, responses, np.repeat(np.arange(args.prompts), args.samples).tolist())
    return TrainingBatch(
        sequences, np.full(sequences.total, -10, np.float32), regression_columns(random.normal(size=len(responses)))
    )


class PlainLoop:
    """What a page of PyTorch does with the same sequences."""

    def __init__(self, folder: Path, dtype: torch.dtype, batch: TrainingBatch, args: argparse.Namespace):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-9)
        sequences = batch.sequences
        prompts = sequences.prompt_token_ids.reshape(-1, args.prompt)[sequences.prompt_of]
        rows = np.concatenate([prompts, sequences.token_ids.reshape(-1, args.response)], axis=1)
        self.ids = torch.from_numpy(rows.astype(np.int64))
        self.start = args.prompt
        self.rows = max(1, args.tokens // self.ids.shape[1])
        targets = torch.from_numpy(batch.columns["target"]).float()
        self.goals = targets - 10.0 * args.response  # log π_t + δ: a token's log π_t is −10

    def log_probs(self, ids: Tensor) -> Tensor:
        logits = self.model(ids).logits[:, self.start - 1 : -1].float()
        return torch.log_softmax(logits, -1).gather(-1, ids[:, self.start :, None]).sum((1, 2))

    def old_log_probs(self) -> None:
        with torch.no_grad():
            for ids in self.ids.split(self.rows):
                self.log_probs(ids)

    def step(self) -> float:
        """The loss."""
        total = 0.0
        for ids, goals in zip(self.ids.split(self.rows), self.goals.split(self.rows), strict=True):
            loss = ((self.log_probs(ids) - goals) ** 2).sum() / len(self.ids)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total


def benchmark(args: argparse.Namespace) -> list[dict[str, Any]]:
    folder = resolve_hf_folder(args.model)
    policy = build_policy(args, folder)
    batch = random_batch(args, policy.model.vocab_size)
    units = single_units(len(batch.sequences))
    plain = PlainLoop(folder, DTYPES[args.dtype], batch, args)

    losses: dict[str, Any] = {}

    def run(variant: str, work: Callable[[], Any], shares: bool) -> None:
        policy._layout = replace(policy._layout, shared_prompts=shares)
        losses[variant] = work()

    works: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "log-probs": (plain.old_log_probs, lambda: policy.compute_log_probs(batch.sequences)),
        "step": (plain.step, lambda: policy.train_step(batch, units)["loss"]),
    }
    rows = []
    for name, (theirs, own) in works.items():
        variants: dict[str, Callable[[], Any]] = {
            "plain": partial(run, "plain", theirs, False),
            "packed": partial(run, "packed", own, False),
            "shared prompts": partial(run, "shared prompts", own, True),
        }
        measured = measure(variants, args.rounds, local_device(), args.clock)
        base = measured["plain"]["seconds"]
        for variant, figures in measured.items():
            ratio = {"ratio": figures["seconds"] / base, "extra MiB": figures["extra_mib"]}
            loss = losses[variant] if name == "step" else None
            rows.append({"work": name, "variant": variant, "s": figures["seconds"], **ratio, "loss": loss})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder in Hugging Face format, or a GGUF file")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--samples", type=int, default=8, help="responses to each prompt")
    parser.add_argument("--prompt", type=int, default=48, help="tokens of a prompt")
    parser.add_argument("--response", type=int, default=32, help="tokens of a response")
    parser.add_argument("--tokens", type=int, default=2048, help="of a micro-batch at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=CLOCKS, default="process")
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    initialize_distributed(timeout_minutes=30)
    rows = benchmark(args)
    print_table(rows, ["work", "variant", "s", "ratio", "extra MiB", "loss"])
    write_json(args.json, {"machine": machine(local_device()), "arguments": vars(args), "rows": rows})


if __name__ == "__main__":
    main()
