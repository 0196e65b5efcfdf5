"""Log-probs from hidden states and LM head, forward and backward, side by side with what else computes them.

    python -m sppo_benchmarks.log_probs --hidden 512 1024 --dtype fp32 bf16 --json out.json
    torchrun --nproc-per-node 2 -m sppo_benchmarks.log_probs            # tensor parallel over the ranks

How to read the table: tools/README.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from sppo_benchmarks.measuring import CLOCKS, MIB, machine, measure, print_table, write_json
from sppo_megatron.config import ParallelismConfig
from sppo_megatron.parallel import linear_sppo_loss, vocab_parallel_linear_log_probs
from sppo_megatron.policy.initialize import initialize_distributed, initialize_model_parallel, local_device

# after sppo_megatron.policy, which lets Megatron-Core run on CPU
from megatron.core.fusions.fused_cross_entropy import fused_vocab_parallel_cross_entropy  # isort: skip
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy  # isort: skip
from megatron.core.tensor_parallel.layers import linear_with_grad_accumulation_and_async_allreduce  # isort: skip

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COLUMNS = ["variant", "ms", "/3G", "/4G", "/mcore", "extra MiB", "mem/mcore", "max error"]


@dataclass
class Problem:
    """One size: hidden [N, H] and weight [V/tp, H] are leaves, targets [N]; sequences of equal length for the loss."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    tp_group: dist.ProcessGroup
    num_sequences: int

    @classmethod
    def make(
        cls, args: argparse.Namespace, width: int, dtype: torch.dtype, tp: dist.ProcessGroup, device: torch.device
    ) -> Problem:
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(args.tokens, width, generator=generator)
        columns = args.vocab // tp.size()
        weight = torch.randn(args.vocab, width, generator=generator)[tp.rank() * columns : (tp.rank() + 1) * columns]
        targets = torch.randint(0, args.vocab, (args.tokens,), generator=generator)
        hidden, weight = ((x * width**-0.25).to(device, dtype) for x in (hidden, weight))
        return cls(hidden.requires_grad_(), weight.clone().requires_grad_(), targets.to(device), tp, args.sequences)

    def part(self, share: float) -> Problem:
        """The first tokens only, as if the others were masked."""
        count = int(self.hidden.shape[0] * share)
        hidden = self.hidden.detach()[:count].clone().requires_grad_()
        return Problem(hidden, self.weight, self.targets[:count], self.tp_group, self.num_sequences)

    @property
    def group(self) -> dist.ProcessGroup | None:
        return self.tp_group if self.tp_group.size() > 1 else None


def plain_torch(p: Problem) -> Tensor:
    return torch.log_softmax((p.hidden @ p.weight.t()).float(), -1).gather(1, p.targets[:, None])[:, 0]


def cross_entropy(p: Problem) -> Tensor:
    return -F.cross_entropy((p.hidden @ p.weight.t()).float(), p.targets, reduction="none")


def mcore(p: Problem, fused: bool = False) -> Tensor:
    logits = linear_with_grad_accumulation_and_async_allreduce(
        p.hidden[:, None], p.weight, None, False, p.tp_group.size() > 1, False, tp_group=p.tp_group
    )
    if fused:
        return -fused_vocab_parallel_cross_entropy(logits, p.targets[:, None], p.tp_group)[:, 0]
    return -vocab_parallel_cross_entropy(logits, p.targets[:, None])[:, 0]


def liger(p: Problem) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return -liger_fused_linear_cross_entropy(p.hidden, p.weight, p.targets, reduction="none")


def ours(p: Problem) -> Tensor:
    result = vocab_parallel_linear_log_probs(p.hidden, p.weight, p.targets, tp_group=p.group)
    assert isinstance(result, Tensor)
    return result


def forward_backward(function: Callable[[Problem], Tensor], p: Problem) -> None:
    """With another upstream gradient for each token, as every preference loss has."""
    log_probs = function(p)
    log_probs.backward(torch.linspace(-1, 1, log_probs.numel(), device=log_probs.device, dtype=log_probs.dtype))
    p.hidden.grad = p.weight.grad = None


def forward_alone(function: Callable[[Problem], Tensor], p: Problem) -> None:
    with torch.no_grad():
        function(p)


def sppo_loss(p: Problem) -> None:
    tokens, sequences = p.hidden.shape[0], p.num_sequences
    ids = torch.arange(tokens, device=p.hidden.device) * sequences // tokens
    ones = torch.ones(sequences, device=p.hidden.device)
    old = torch.full((tokens,), -10.0, device=p.hidden.device)
    lengths = [
        (tokens * (k + 1) + sequences - 1) // sequences - (tokens * k + sequences - 1) // sequences
        for k in range(sequences)
    ]
    linear_sppo_loss(
        p.hidden, p.weight, p.targets, old, ids, ones, ones / tokens, lengths=lengths, tp_group=p.group
    ).loss_sum.backward()
    p.hidden.grad = p.weight.grad = None


def gemms(p: Problem) -> dict[str, Callable[[], Any]]:
    """The three products on whole matrices, in the dtype of the problem, results in place."""
    hidden, weight = p.hidden.detach(), p.weight.detach()
    logits = hidden.new_empty(hidden.shape[0], weight.shape[0])
    grad_hidden, grad_weight = torch.empty_like(hidden), torch.empty_like(weight)
    return {
        "gemm forward": lambda: torch.mm(hidden, weight.t(), out=logits),
        "gemm hidden": lambda: torch.mm(logits, weight, out=grad_hidden),
        "gemm weight": lambda: torch.mm(logits.t(), hidden, out=grad_weight),
    }


def peers(p: Problem) -> dict[str, Callable[[Problem], Tensor]]:
    functions: dict[str, Callable[[Problem], Tensor]] = {
        "ours": ours,
        "mcore": mcore,
        "mcore fused": partial(mcore, fused=True),
    }
    if p.group is None:
        functions |= {"torch log_softmax": plain_torch, "F.cross_entropy": cross_entropy}
        if p.hidden.is_cuda and importlib.util.find_spec("liger_kernel"):
            functions["liger"] = liger
    return functions


def exact(p: Problem) -> Tensor:
    """Float64 log-probs of the first 256 tokens, over the whole vocabulary."""
    weight = p.weight.detach().double()
    if p.group is not None:
        shards = [torch.empty_like(weight) for _ in range(p.tp_group.size())]
        dist.all_gather(shards, weight, group=p.group)
        weight = torch.cat(shards)
    logits = p.hidden.detach()[:256].double() @ weight.t()
    return torch.log_softmax(logits, -1).gather(1, p.targets[:256, None])[:, 0]


def benchmark(args: argparse.Namespace, p: Problem, device: torch.device) -> list[dict[str, Any]]:
    functions = {name: f for name, f in peers(p).items() if not args.variants or name in args.variants}
    variants: dict[str, Callable[[], Any]] = gemms(p)
    variants |= {name: partial(forward_backward, f, p) for name, f in functions.items()}
    variants["ours, half masked"] = partial(forward_backward, ours, p.part(0.5))
    variants["ours, forward alone"] = partial(forward_alone, ours, p)
    variants["ours, sppo loss"] = partial(sppo_loss, p)
    measured = measure(variants, args.rounds, device, args.clock)
    forward, hidden, weight = (measured.pop(f"gemm {name}")["seconds"] for name in ("forward", "hidden", "weight"))
    floor3, floor4 = forward + hidden + weight, 2 * forward + hidden + weight
    reference = exact(p)
    returned = {"ours, half masked": p.part(0.5).hidden.nbytes + p.weight.nbytes, "ours, forward alone": 0}
    rows: list[dict[str, Any]] = [{"variant": "3G", "ms": floor3 * 1e3}, {"variant": "4G", "ms": floor4 * 1e3}]
    for name, figures in measured.items():
        extra = figures["extra_mib"] - returned.get(name, p.hidden.nbytes + p.weight.nbytes) / MIB
        row = {"variant": name, "ms": figures["seconds"] * 1e3, "extra MiB": max(0.0, extra)}
        row |= {"/3G": figures["seconds"] / floor3, "/4G": figures["seconds"] / floor4}
        if name in functions:
            with torch.no_grad():
                row["max error"] = float((functions[name](p)[:256].double() - reference).abs().max())
        rows.append(row)
    base = next((row for row in rows if row["variant"] == "mcore"), None)
    for row in rows[2:] if base else []:
        assert base is not None
        row |= {"/mcore": row["ms"] / base["ms"], "mem/mcore": row["extra MiB"] / max(1.0, base["extra MiB"])}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--vocab", type=int, default=32768, help="over all ranks")
    parser.add_argument("--hidden", type=int, nargs="+", default=[512])
    parser.add_argument("--dtype", choices=list(DTYPES), nargs="+", default=["fp32"])
    parser.add_argument("--sequences", type=int, default=8, help="of the SPPO loss")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--variants", nargs="*", help="only these of the peers; ours and the GEMMs are needed for ratios"
    )
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="process: CPU time, for a busy machine")
    parser.add_argument("--json", help="file to write the figures to")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    initialize_distributed(timeout_minutes=10)
    tp = initialize_model_parallel(ParallelismConfig(tensor_model_parallel_size=dist.get_world_size()), seed=0).tp
    device, results, first = local_device(), [], int(os.environ.get("RANK", "0")) == 0
    for width in args.hidden:
        for dtype in args.dtype:
            rows = benchmark(args, Problem.make(args, width, DTYPES[dtype], tp, device), device)
            results.append({"hidden": width, "dtype": dtype, "tokens": args.tokens, "vocab": args.vocab, "rows": rows})
            if first:
                print(f"\nN={args.tokens} V={args.vocab} H={width} {dtype} TP={tp.size()}")
                print_table(rows, COLUMNS)
    if first:
        write_json(args.json, {"machine": machine(device), "arguments": vars(args), "results": results})
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
