"""Where an iteration's time goes with each rollout engine: the real command, run once for each, side by side.

    python -m sppo_benchmarks.rollouts --ranks 2 experiment=demo parallelism.tensor_model_parallel_size=2
    python -m sppo_benchmarks.rollouts --server http://127.0.0.1:8100 ...      # with a server of `sppo serve`

What follows the options are Hydra overrides of `sppo_megatron.train`. Figures are medians over the iterations after the
first. Engines take turns (`--rounds`), so that a noisy machine disturbs all of them alike.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from sppo_benchmarks.measuring import machine, print_table, write_json
from sppo_megatron.train.tracking.metrics_file import read_metrics

STAGES = ("sync", "rollout", "reward", "log_probs", "train")


def run(engine: str, options: argparse.Namespace, output: Path) -> list[dict[str, float]]:
    """One dict of an iteration's figures for each iteration after the first."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(options.ranks), "-m"]
    command = [sys.executable, *(launcher if options.ranks > 1 else ["-m"]), "sppo_megatron.train", *options.overrides]
    servers = [f"rollout.server.urls=[{','.join(options.server)}]"] if engine == "vllm_server" else []
    own = [f"rollout.engine={engine}", f"train.iterations={options.iterations}", f"output_dir={output}"]
    subprocess.run([*command, *own, *servers, "logger.progress=false"], check=True, stdout=subprocess.DEVNULL)
    iterations: dict[int, list[dict[str, float]]] = {}
    for line in read_metrics(output / "metrics.jsonl"):
        if "step" in line:
            iterations.setdefault(line["iteration"], []).append(line)
    return [figures(steps) for index, steps in iterations.items() if index > 0]


def figures(steps: list[dict[str, float]]) -> dict[str, float]:
    """Seconds of each stage and what was moved, of one iteration."""
    first = steps[0]
    seconds = {stage: first[f"seconds_{stage}"] for stage in STAGES if stage != "train"}
    seconds["train"] = sum(step["seconds_train"] for step in steps)
    extra = {"tokens_per_second": first["rollout_tokens_per_second"], "sync_bytes": first["sync_bytes"]}
    return {**seconds, **extra, "mismatch": first["mismatch_max"]}


def rows_of(found: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    rows = []
    for engine, iterations in found.items():
        middle = {name: statistics.median(iteration[name] for iteration in iterations) for name in iterations[0]}
        total = sum(middle[stage] for stage in STAGES)
        row: dict[str, Any] = {"engine": engine, "tokens/s": middle["tokens_per_second"], "s/iteration": total}
        row |= {f"{stage} %": 100 * middle[stage] / total for stage in STAGES}
        rows.append(
            row | {"sync s": middle["sync"], "sync MiB": middle["sync_bytes"] / 2**20, "mismatch": middle["mismatch"]}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=20, help="of one run; the first one isn't counted")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--server", action="append", default=[], help="URL of a server; gives the third engine")
    parser.add_argument("--json", help="file to write the figures to")
    parser.add_argument("overrides", nargs="+", help="Hydra overrides")
    options = parser.parse_args()
    engines = ["megatron", "vllm", *(["vllm_server"] if options.server else [])]
    found: dict[str, list[dict[str, float]]] = {engine: [] for engine in engines}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            for engine in engines if number % 2 == 0 else engines[::-1]:
                found[engine] += run(engine, options, Path(folder) / f"{engine}-{number}")
    rows = rows_of(found)
    print_table(rows, list(rows[0]))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    write_json(options.json, {"machine": machine(device), "arguments": vars(options), "rows": rows})


if __name__ == "__main__":
    main()
