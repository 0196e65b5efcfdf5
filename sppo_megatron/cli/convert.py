"""sppo convert: weights between Hugging Face format and Megatron-Core's torch_dist format, one tensor at a time.

    sppo convert --to megatron --hf-path MODEL --output CHECKPOINT
    sppo convert --to hf --megatron-path CHECKPOINT --output FOLDER

A converted checkpoint loads in every layout; the parallel sizes that are given decide how far the vocabulary is padded
and are checked against the model. Beside the weights, `hf/` keeps config, generation config and tokenizer, so that the
way back needs no --hf-path. The `megatron/` folder of a training checkpoint converts too, whatever its layout was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sppo_megatron.cli.options import add_layout_arguments, add_output_arguments, check_absent, run_on_cpu
from sppo_megatron.cluster.garbage_collection import garbage_collection_paused
from sppo_megatron.errors import ConfigError


def main(arguments: Sequence[str] | None = None) -> int:
    """Converts; returns the exit code."""
    options = _parser().parse_args(arguments)
    return run_on_cpu("conversion", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if options.to == "megatron" and (options.hf_path is None or options.megatron_path is not None):
        raise ConfigError("--to megatron reads --hf-path, and no --megatron-path")
    if options.to == "hf" and options.megatron_path is None:
        raise ConfigError("--to hf reads --megatron-path: give the folder with metadata.json")
    check_absent(options.output, options.overwrite or options.dry_run)
    with garbage_collection_paused():
        from sppo_megatron.cli import conversion
    run = conversion.to_megatron if options.to == "megatron" else conversion.to_hf
    run(options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sppo convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", choices=("megatron", "hf"), required=True, help="the format to write")
    parser.add_argument(
        "--hf-path",
        help="a folder in Hugging Face format, or a hub id; with --to hf, the folder of config.json and tokenizer "
        "(default: what --to megatron kept of them)",
    )
    parser.add_argument("--megatron-path", type=Path, help="with --to hf: the folder with metadata.json")
    add_output_arguments(parser)
    add_layout_arguments(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
