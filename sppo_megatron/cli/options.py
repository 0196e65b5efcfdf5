"""What the checkpoint commands share: arguments, messages, the output folder and the progress bar."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sppo_megatron.config import ModelConfig, ParallelismConfig
from sppo_megatron.config.checks import check_layout, check_processes
from sppo_megatron.data.atomic_file import atomic_folder
from sppo_megatron.errors import ConfigError

EXIT_DIFFERENT = 1
EXIT_ERROR = 2
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
    """The folder or hub id with the checkpoint's config. Raises ValueError that says what to give."""
    if hf_path is not None:
        return hf_path
    if (megatron_path / SIDE_FOLDER / "config.json").exists():
        return str(megatron_path / SIDE_FOLDER)
    raise ValueError(f"{megatron_path} has no {SIDE_FOLDER}/config.json: give --hf-path, the model it started from")


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
    """Raises ConfigError where the model can't be cut so, on world_size processes (None: as many as that takes)."""
    p = parallelism
    sizes = (p.tensor_model_parallel_size, p.pipeline_model_parallel_size, p.expert_model_parallel_size)
    if min(sizes) < 1:
        raise ConfigError("parallel sizes must be at least 1")
    if world_size is None:
        experts = (p.expert_tensor_parallel_size or sizes[0]) * sizes[2]
        world_size = sizes[1] * math.lcm(sizes[0], experts)
    check_processes(parallelism, world_size)
    check_layout(parallelism, **layout_sizes)


def run_command(run: Callable[[], int]) -> int:
    """The exit code: run's, or EXIT_ERROR with one message on standard error."""
    # Conversion is exact and needs no GPU, and Megatron-Core runs on CPU where it sees none.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    warnings.filterwarnings("ignore", module=r"(megatron|torch)\..*")
    try:
        return run()
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return EXIT_ERROR


@contextlib.contextmanager
def new_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """As `atomic_folder`. Raises FileExistsError if the folder exists and may not be overwritten."""
    check_absent(folder, overwrite)
    with atomic_folder(folder) as partial:
        yield partial


def check_absent(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not overwrite:
        raise FileExistsError(f"{folder} exists: give another --output, or --overwrite to replace it")


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on standard error; the block calls what it gets once for each of `total` things done."""
    columns = (TextColumn(what), BarColumn(bar_width=32), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
