"""A whole training step on Megatron-Core, with our LM heads and with Megatron's own head and cross entropy.

    python -m sppo_benchmarks.train_step --hidden 256 --layers 4 --vocab 32768
    torchrun --nproc-per-node 2 -m sppo_benchmarks.train_step --sequence-parallel      # tensor parallel over the ranks

Forward and backward of all micro-batches, gradient reduction, optimizer; random weights and responses.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import Qwen2Config

from sppo_benchmarks.measuring import CLOCKS, machine, measure, print_table, write_json
from sppo_megatron.batch.collate import MicroBatch
from sppo_megatron.batch.sequences import Sequences, make_sequences
from sppo_megatron.batch.training_batch import TrainingBatch, regression_columns, single_units
from sppo_megatron.config import Config
from sppo_megatron.hf.hf_checkpoint import RandomTensors
from sppo_megatron.hf.hf_config import load_hf_config, read_architecture
from sppo_megatron.hf.mapping import hf_shapes, parameter_layouts
from sppo_megatron.policy.initialize import initialize_distributed, initialize_model_parallel, local_device
from sppo_megatron.policy.model.mapped import MappedModel
from sppo_megatron.policy.policy import Policy
from sppo_megatron.policy.step.lm_head import LogProbHead

from megatron.core.tensor_parallel import vocab_parallel_cross_entropy  # isort: skip


def megatron_head(
    *, hidden_states: Tensor, output_layer: nn.Module, output_weight: Tensor | None, context: MicroBatch, **_: Any
) -> Tensor:
    """Logits of every token by Megatron's output layer, then its cross entropy; of that, the response tokens."""
    logits, _ = output_layer(hidden_states, weight=output_weight)
    labels = torch.zeros(logits.shape[:2], dtype=torch.int64, device=logits.device)
    labels.view(-1)[context.rows] = context.labels
    return -vocab_parallel_cross_entropy(logits, labels).view(-1)[context.rows]


def run_config(args: argparse.Namespace, folder: str, *, shared_prompts: bool) -> Config:
    run = Config()
    run.model.hf_path, run.model.init = folder, "random"
    run.precision.dtype = args.dtype
    if args.fp8_recipe is not None:
        run.precision.fp8_recipe = args.fp8_recipe
        run.precision.fp8 = "hybrid" if args.fp8_recipe in ("delayed", "tensorwise") else "e4m3"
    run.parallelism.tensor_model_parallel_size = dist.get_world_size()
    run.parallelism.sequence_parallel = args.sequence_parallel
    run.train.max_tokens_per_micro_batch = args.tokens
    run.train.shared_prompts = shared_prompts
    run.train.logits_budget_mib = args.logits_budget_mib
    run.optimizer.lr = 1e-9  # every variant sees the same weights
    return run


def build_policy(args: argparse.Namespace, *, shared_prompts: bool = False) -> Policy:
    with tempfile.TemporaryDirectory() as folder:
        Qwen2Config(
            vocab_size=args.vocab,
            hidden_size=args.hidden,
            intermediate_size=3 * args.hidden,
            num_hidden_layers=args.layers,
            num_attention_heads=args.hidden // 64,
            num_key_value_heads=args.hidden // 64,
            tie_word_embeddings=args.tied,
        ).save_pretrained(folder)
        run = run_config(args, folder, shared_prompts=shared_prompts)
        architecture = read_architecture(load_hf_config(folder))
        groups = initialize_model_parallel(run.parallelism, seed=0)
        shapes = hf_shapes(parameter_layouts(architecture, architecture.vocab_size))
        tensors = RandomTensors(shapes, architecture.initializer_range, 0)
        model = MappedModel(architecture, tensors, run.model.make_vocab_size_divisible_by)
        return Policy(run, model, groups, 1000)


def random_batch(args: argparse.Namespace) -> TrainingBatch:
    """As many sequences as fill the micro-batches; the prompt is a share of each."""
    random = np.random.default_rng(0)
    prompt = int(args.sequence_length * args.prompt_share)
    response = args.sequence_length + 1 - prompt
    count = args.micro_batches * args.tokens // args.sequence_length
    prompts, responses = (random.integers(0, args.vocab, (count, length)) for length in (prompt, response))
    sequences = make_sequences(list(prompts), list(responses))
    columns = regression_columns(random.normal(size=count))
    return TrainingBatch(sequences, np.full(sequences.total, -10, np.float32), columns)


def model_flops(args: argparse.Namespace, sequences: Sequences) -> float:
    """FLOPs of one step that the model's definition needs: forward, and twice as many backward; nothing recomputed.

    Layers over every token that is fed, causal attention over half of the pairs, the head over response tokens alone.
    """
    h = args.hidden
    tokens = sequences.num_tokens.sum()
    pairs = (sequences.num_tokens**2 / 2).sum()
    layers = args.layers * (2 * (4 * h * h + 3 * h * 3 * h) * tokens + 4 * h * pairs)
    return 3 * (layers + 2 * h * args.vocab * sequences.total)


def benchmark(args: argparse.Namespace) -> list[dict[str, Any]]:
    policy = build_policy(args)
    batch = random_batch(args)
    units = single_units(len(batch.sequences))
    gflops = model_flops(args, batch.sequences) / dist.get_world_size() / 1e9
    fused = policy.training_head
    log_probs = LogProbHead(policy.groups, args.vocab, 1.0, args.sequence_parallel)
    heads: dict[str, Any] = {"megatron": megatron_head, "ours, log-probs": log_probs, "ours, sppo loss": fused}
    losses: dict[str, float] = {}

    def step(name: str) -> None:
        policy.training_head = heads[name]
        losses[name] = policy.train_step(batch, units)["loss"]

    measured = measure({name: partial(step, name) for name in heads}, args.rounds, local_device(), args.clock)
    base = measured["megatron"]
    rows: list[dict[str, Any]] = []
    for name, figures in measured.items():
        row = {"head": name, "s/step": figures["seconds"], "ratio": figures["seconds"] / base["seconds"]}
        extra = {"extra MiB": figures["extra_mib"], "mem ratio": figures["extra_mib"] / max(1.0, base["extra_mib"])}
        rows.append(row | {"GFLOP/s": gflops / figures["seconds"]} | extra | {"loss": losses[name]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=256, help="a multiple of 64")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=32768)
    parser.add_argument("--tied", action="store_true", help="the head shares the embedding's weight")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument(
        "--fp8-recipe", choices=["delayed", "tensorwise", "blockwise", "mxfp8"], help="with --dtype bf16"
    )
    parser.add_argument("--tokens", type=int, default=1024, help="of one packed micro-batch")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument(
        "--prompt-share", type=float, default=0.25, help="of each sequence; its log-probs aren't needed"
    )
    parser.add_argument("--micro-batches", type=int, default=2)
    parser.add_argument("--sequence-parallel", action="store_true")
    parser.add_argument("--logits-budget-mib", type=float, default=512.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="process: CPU time, for a busy machine")
    parser.add_argument("--json", help="file to write the figures to")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    initialize_distributed(timeout_minutes=10)
    rows = benchmark(args)
    if int(os.environ.get("RANK", "0")) == 0:
        print_table(rows, ["head", "s/step", "ratio", "GFLOP/s", "extra MiB", "mem ratio", "loss"])
        write_json(args.json, {"machine": machine(local_device()), "arguments": vars(args), "rows": rows})
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
