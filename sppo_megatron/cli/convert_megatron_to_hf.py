"""A Megatron-Core torch_dist checkpoint -> Hugging Face format, one tensor in memory at a time.

Reads what convert_hf_to_megatron writes and the `megatron/` folder of a training checkpoint, from whatever layout.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sppo_megatron.cli.options import (
    add_output_arguments,
    check_absent,
    config_of,
    progress,
    run_command,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sppo_megatron.hf.hf_model import HFModel


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="convert_megatron_to_hf", description=str(__doc__).splitlines()[0])
    parser.add_argument("--megatron-path", type=Path, required=True, help="the folder with metadata.json")
    parser.add_argument(
        "--hf-path", help="where config.json and the tokenizer are; by default what convert_hf_to_megatron kept of them"
    )
    add_output_arguments(parser)
    options = parser.parse_args(arguments)
    return run_command(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from sppo_megatron.cli.tables import print_rows
    from sppo_megatron.config import ParallelismConfig
    from sppo_megatron.hf.hf_model import open_hf_model
    from sppo_megatron.hf.inventory import tensor_rows
    from sppo_megatron.hf.mapping import parameter_layouts
    from sppo_megatron.hf.save import save_hf_folder
    from sppo_megatron.policy.checkpoint.weights import StoredWeights
    from sppo_megatron.policy.checkpoint.weights_table import WeightsTable
    from sppo_megatron.policy.initialize import initialize_distributed

    check_absent(options.output, options.overwrite or options.dry_run)
    model = open_hf_model(config_of(options.megatron_path, options.hf_path))
    if not model.is_mapped and not options.dry_run:
        return _run_by_bridge(options, model)
    vocab_size = model.architecture.vocab_size
    layouts = parameter_layouts(model.architecture, vocab_size)
    initialize_distributed(timeout_minutes=5)
    stored = StoredWeights(options.megatron_path, WeightsTable(model.architecture, vocab_size))
    if options.dry_run:
        print_rows(tensor_rows(model.architecture, layouts, ParallelismConfig()))
        return 0
    with progress("converting", len(layouts)) as advance:

        def tensors() -> Iterator[tuple[str, Tensor]]:
            for name, layout in layouts.items():
                yield from zip(layout.hf_names, layout.unshard([stored.read(name)]), strict=True)
                advance()

        # writes beside the folder and renames
        save_hf_folder(options.output, tensors(), model.hf_config, model.tokenizer, model.generation_config)
    print(f"wrote {options.output}: {len(layouts)} parameters")
    return 0


def _run_by_bridge(options: argparse.Namespace, model: HFModel) -> int:
    """With the whole model in memory."""
    from sppo_megatron.hf.save import save_hf_folder
    from sppo_megatron.policy.initialize import initialize_distributed
    from sppo_megatron.policy.model.bridge import BridgeModel
    from sppo_megatron.policy.model.whole import read_model

    initialize_distributed(timeout_minutes=5)
    tensors = read_model(BridgeModel(model.folder, model.hf_config), options.megatron_path)
    save_hf_folder(options.output, tensors, model.hf_config, model.tokenizer, model.generation_config)
    print(f"wrote {options.output} by megatron-bridge")
    return 0


if __name__ == "__main__":
    sys.exit(main())
