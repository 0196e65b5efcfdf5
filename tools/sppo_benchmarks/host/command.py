"""The host's part of an iteration, measured: CPU seconds and peak memory a million response tokens, at three sizes.

    python tools/benchmark_host.py
    python tools/benchmark_host.py --rows "rollout file written" "mismatch gate" --tokens 250000 1000000 4000000
    python tools/benchmark_host.py --beside ../before        # another checkout, then this one
    torchrun --nproc-per-node 2 tools/benchmark_host.py --rows "weights exported (1,000 tensors)"    # rank 0's figures

A figure is the smallest over rounds of the process's CPU time, all threads together: other programs on the machine make
it larger and never smaller. exponent: of the growth over the sizes; 1 is linear. --beside runs the same command of
other checkouts first and prints their tables; their own benchmark measures them.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sppo_benchmarks.host import batches, files, weights
from sppo_benchmarks.host.row import Row, Work
from sppo_benchmarks.host.workload import Workload
from sppo_benchmarks.measuring import machine, measure, print_table, write_json

ROWS: tuple[Row, ...] = (*batches.ROWS, *files.ROWS, *weights.ROWS)
COLUMNS = ["row", "s/M", "target", "exponent", "MiB/M", "bytes/token", "most bytes", "met"]
_CPU = torch.device("cpu")


def measure_row(row: Row, workloads: Sequence[Workload], rounds: int) -> dict[str, Any]:
    """One line of the table: seconds and memory of the largest size, over its millions of tokens."""
    seconds = []
    with tempfile.TemporaryDirectory() as name:
        for number, work in enumerate(workloads):
            folder = Path(name) / str(number)
            folder.mkdir()
            call = row.make(work, folder)
            [memory] = measure({row.name: call}, 1, _CPU, "process").values()
            seconds.append(min(_seconds(call) for _ in range(rounds)))
        size = None if row.bytes_a_token is None else row.bytes_a_token(workloads[-1], folder)
    millions = workloads[-1].tokens / 1e6
    of_million = seconds[-1] / millions
    bounds = ((of_million, row.target), (size, row.bytes_target))
    met = [value <= bound for value, bound in bounds if value is not None and bound is not None]
    return {
        "row": row.name,
        "s/M": of_million,
        "target": row.target,
        "exponent": _exponent([work.tokens for work in workloads], seconds),
        "MiB/M": memory["extra_mib"] / millions,
        "bytes/token": size,
        "most bytes": row.bytes_target,
        "met": ("yes" if all(met) else "no") if met else None,
    }


def _seconds(call: Work) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def _exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float | None:
    """Between the first and the last size."""
    if len(sizes) < 2:
        return None
    return math.log(seconds[-1] / seconds[0]) / math.log(sizes[-1] / sizes[0])


def _run_each(checkouts: Sequence[Path], options: argparse.Namespace) -> None:
    """The same command in each checkout, this one last."""
    here = Path(__file__).resolve().parents[3]
    for checkout in (*checkouts, here):
        print(checkout.name)
        command = [sys.executable, str(checkout.resolve() / "tools" / "benchmark_host.py")]
        command += ["--rounds", str(options.rounds), "--tokens", *map(str, options.tokens)]
        command += ["--rows", *options.rows] if options.rows else []
        path = f"{checkout.resolve()}:{checkout.resolve() / 'tools'}"
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": path}, stdout=sys.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[250_000, 1_000_000, 4_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], metavar="ROW", help="only these")
    parser.add_argument("--beside", type=Path, nargs="+", metavar="CHECKOUT", help="measured before this one")
    parser.add_argument("--json", help="file to write the figures to")
    options = parser.parse_args()
    if options.beside:
        _run_each(options.beside, options)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        if "WORLD_SIZE" in os.environ:
            dist.init_process_group("gloo")
        else:
            dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        is_first = dist.get_rank() == 0
        workloads = [Workload.of(tokens) for tokens in sorted(options.tokens)]
        chosen = [row for row in ROWS if not options.rows or row.name in options.rows]
        lines = [measure_row(row, workloads, options.rounds) for row in chosen]
        dist.destroy_process_group()
    if not is_first:
        return 0
    print_table(lines, COLUMNS)
    write_json(options.json, {"machine": machine(_CPU), "arguments": {"tokens": options.tokens}, "rows": lines})
    return 0
