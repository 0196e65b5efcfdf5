"""What sppo generate, sppo score and sppo evaluate share: arguments, and how their errors end them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from sppo_megatron.cli.offline.batches import Shard
from sppo_megatron.cli.offline.write import Output
from sppo_megatron.cluster.exit_codes import exit_code_of
from sppo_megatron.config import Config
from sppo_megatron.errors import ConfigError
from sppo_megatron.train.command import set_up_logging

BATCH_SIZE = 64


def offline_parser(
    name: str, description: str | None, items: str, *, to_folder: bool = False
) -> argparse.ArgumentParser:
    """items: what --batch-size counts. to_folder: the output is a folder, and one machine does it all."""
    parser = argparse.ArgumentParser(
        prog=name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, as sppo_megatron.train takes them")
    parser.add_argument("--config-dir", help="one more folder of config groups and experiments")
    metavar, what = ("FOLDER", "the folder to write") if to_folder else ("FILE", "the rollout file to write")
    parser.add_argument("--output", type=Path, required=True, metavar=metavar, help=what)
    parser.add_argument("--overwrite", action="store_true", help="replace what is there if it exists")
    parser.add_argument(
        "--batch-size",
        type=int,
        default=BATCH_SIZE,
        metavar="N",
        help=f"{items} between two saves (default: %(default)s)",
    )
    if not to_folder:
        parser.add_argument(
            "--shard",
            default="0/1",
            metavar="I/N",
            help="the I-th of N shares, from 0; the outputs, one behind the other in this order, are that of the whole",
        )
    return parser


def output_of(options: argparse.Namespace, config: Config) -> Output:
    return Output(options.output, options.overwrite, config.logger.progress)


def shard_of(options: argparse.Namespace) -> Shard:
    """Raises ConfigError for what --shard and --batch-size can't be."""
    check_batch_size(options)
    try:
        return Shard.parse(options.shard)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def check_batch_size(options: argparse.Namespace) -> None:
    """Raises ConfigError."""
    if options.batch_size < 1:
        raise ConfigError(f"--batch-size {options.batch_size} must be at least 1")


def run_offline(what: str, run: Callable[[int], None]) -> int:
    """The exit code; an error that the user can fix is one message. run takes the number of processes of the job."""
    set_up_logging(int(os.environ.get("RANK", "0")))

    def run_ranks() -> int:
        run(int(os.environ.get("WORLD_SIZE", "1")))
        return 0

    return exit_code_of(what, run_ranks)
