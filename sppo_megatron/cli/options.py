"""What `sppo convert` and `sppo verify` share: arguments, how their errors end them, and the output folder."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path

from sppo_megatron.cluster.exit_codes import exit_code_of
from sppo_megatron.config import ModelConfig, ParallelismConfig
from sppo_megatron.config.parallelism import check_layout, check_processes
from sppo_megatron.errors import ConfigError
from sppo_megatron.train.command import set_up_logging

SIDE_FOLDER = "hf"  # in a converted checkpoint: config, generation config and tokenizer


def add_layout_arguments(parser: argparse.ArgumentParser) -> None:
    """--tensor-model-parallel-size and friends."""
    group = parser.add_argument_group("layout", "the parallel sizes that training will use")
    for name in ("tensor-model", "pipeline-model", "expert-model"):
        group.add_argument(f"--{name}-parallel-size", type=int, default=1, metavar="N")
    for name in ("virtual-pipeline-model", "expert-tensor"):
        group.add_argument(f"--{name}-parallel-size", type=int, metavar="N")
    group.add_argument(
        "--make-vocab-size-divisible-by", type=int, default=ModelConfig().make_vocab_size_divisible_by, metavar="N"
    )


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the output folder if it exists")
    parser.add_argument("--dry-run", action="store_true", help="print a table of every tensor and write nothing")


def config_of(megatron_path: Path, hf_path: str | None) -> str:
    """The folder or hub id with the checkpoint's config. Raises ConfigError that says what to give."""
    if hf_path is not None:
        return hf_path
    if (megatron_path / SIDE_FOLDER / "config.json").exists():
        return str(megatron_path / SIDE_FOLDER)
    raise ConfigError(f"{megatron_path} has no {SIDE_FOLDER}/config.json: give --hf-path, the model it started from")


def parallelism_of(options: argparse.Namespace) -> ParallelismConfig:
    tp = options.tensor_model_parallel_size
    return ParallelismConfig(
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=options.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=options.virtual_pipeline_model_parallel_size,
        expert_model_parallel_size=options.expert_model_parallel_size,
        expert_tensor_parallel_size=options.expert_tensor_parallel_size,
        sequence_parallel=tp > 1,
    )


def check_target(parallelism: ParallelismConfig, layout_sizes: dict, world_size: int | None = None) -> None:
    """Raises ConfigError if the model can't be cut so, on world_size processes (None: as many as that takes)."""
    p = parallelism
    sizes = (p.tensor_model_parallel_size, p.pipeline_model_parallel_size, p.expert_model_parallel_size)
    if min(sizes) < 1:
        raise ConfigError("parallel sizes must be at least 1")
    if world_size is None:
        experts = (p.expert_tensor_parallel_size or sizes[0]) * sizes[2]
        world_size = sizes[1] * math.lcm(sizes[0], experts)
    check_processes(parallelism, world_size)
    check_layout(parallelism, **layout_sizes)


def run_on_cpu(what: str, run: Callable[[], int]) -> int:
    """The exit code of `run`; an error that the user can fix is one message.

    Conversion is exact and needs no GPU, and Megatron-Core runs on CPU if it sees none.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    set_up_logging(int(os.environ.get("RANK", "0")))
    return exit_code_of(what, run)


def check_absent(folder: Path, overwrite: bool) -> None:
    """Raises ConfigError if the folder exists and may not be overwritten."""
    if folder.exists() and not overwrite:
        raise ConfigError(f"{folder} exists: give another --output, or --overwrite to replace it")
