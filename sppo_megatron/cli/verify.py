"""sppo verify: compares a Megatron-Core checkpoint with the Hugging Face model it should hold: tensors, then logits.

    sppo verify --hf-path MODEL --megatron-path CHECKPOINT

Exit code 0 if every tensor has the same bytes and the logits agree, else 1, with the names of the tensors that differ.
Under torchrun the ranks share the tensors among them, and the logits are those of the given layout.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sppo_megatron.cli.options import add_layout_arguments, run_on_cpu
from sppo_megatron.cluster.garbage_collection import garbage_collection_paused

EXIT_DIFFERENT = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="sppo verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hf-path", required=True, help="a folder in Hugging Face format, or a hub id")
    parser.add_argument("--megatron-path", type=Path, required=True, help="the folder with metadata.json")
    parser.add_argument("--text", help="what the logits are compared on; needs a tokenizer")
    parser.add_argument("--token-ids", help="the same as comma-separated numbers; without both, 32 random tokens")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="of fp32 logits, relative to the largest one")
    parser.add_argument("--skip-logits", action="store_true", help="tensors only: no model is built")
    add_layout_arguments(parser)
    options = parser.parse_args(arguments)
    return run_on_cpu("verification", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    # Transformer Engine multiplies fp32 in TF32, whose 10 bits are above the tolerance. Read when cuBLAS starts.
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    with garbage_collection_paused():
        from sppo_megatron.cli import comparison
    problems = comparison.compare(options)
    if int(os.environ.get("RANK", "0")) == 0:
        for problem in problems:
            print(f"DIFFERENT {problem}")
        print(f"{len(problems)} differences" if problems else "the checkpoint holds the same model")
    return EXIT_DIFFERENT if problems else 0


if __name__ == "__main__":
    sys.exit(main())
