"""Training checkpoints that load in every layout, and those of checkpoint.reshardable=false, saved and loaded.

torchrun --nproc-per-node 2 -m sppo_benchmarks.checkpoints --hidden 512 --layers 8      # data parallel
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sppo_benchmarks import train_step
from sppo_benchmarks.measuring import CLOCKS, machine, measure, print_table, write_json
from sppo_megatron.batch.training_batch import single_units
from sppo_megatron.config import Config
from sppo_megatron.policy.checkpoint.training import Checkpointer
from sppo_megatron.policy.initialize import initialize_distributed, local_device

COLUMNS = ["checkpoint", "work", "seconds", "s/GB", "extra MiB a rank", "bytes a parameter"]


def _data_parallel(args: argparse.Namespace, folder: str, *, shared_prompts: bool) -> Config:
    run = Config()
    run.model.hf_path, run.model.init = folder, "random"
    run.precision.dtype = args.dtype
    run.train.max_tokens_per_micro_batch, run.train.shared_prompts = args.tokens, shared_prompts
    return run


def benchmark(args: argparse.Namespace) -> list[dict[str, Any]]:
    train_step.run_config = _data_parallel
    policy = train_step.build_policy(args)
    batch = train_step.random_batch(args)
    policy.train_step(batch, single_units(len(batch.sequences)))  # before it there is no state
    parameters = sum(parameter.numel() for chunk in policy.chunks for parameter in chunk.parameters())
    folder = [tempfile.mkdtemp(dir=args.folder) if dist.get_rank() == 0 else ""]
    dist.broadcast_object_list(folder)
    rows: list[dict[str, Any]] = []
    for reshardable, name in ((True, "every layout"), (False, "its own layout")):
        path = Path(folder[0], str(reshardable))
        checkpointer = Checkpointer(policy, path, keep_last=1, async_save=False)

        def save(to: Checkpointer = checkpointer, whole: bool = reshardable) -> None:
            to.save(1, lambda folder: None, reshardable=whole)

        def load(to: Checkpointer = checkpointer, path: Path = path) -> None:
            to.load(path / "step_00000001")

        for work, call in (("save", save), ("load", load)):
            [figures] = measure({work: call}, args.rounds, local_device(), args.clock).values()
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e9
            row = {"checkpoint": name, "work": work, "seconds": figures["seconds"], "s/GB": figures["seconds"] / size}
            row["extra MiB a rank"] = figures["extra_mib"]
            ranks = dist.get_world_size()
            rows.append(row | {"bytes a parameter": figures["extra_mib"] * 2**20 * ranks / parameters})
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(folder[0])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512, help="a multiple of 64")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--folder", help="where to write, for the time of the measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="process: CPU time, for a busy machine")
    parser.add_argument("--json", help="file to write the figures to")
    args = parser.parse_args()
    args.tied, args.tokens, args.sequence_length, args.prompt_share, args.micro_batches = True, 256, 64, 0.25, 1
    torch.set_num_threads(1)
    initialize_distributed(timeout_minutes=10)
    rows = benchmark(args)
    if int(os.environ.get("RANK", "0")) == 0:
        print_table(rows, COLUMNS)
        write_json(args.json, {"machine": machine(local_device()), "arguments": vars(args), "rows": rows})
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
