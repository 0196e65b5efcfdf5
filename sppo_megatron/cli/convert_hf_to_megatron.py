"""Hugging Face weights -> Megatron-Core's torch_dist checkpoint, one tensor in memory at a time.

The checkpoint loads in every layout; the parallel sizes that are given here decide how far the vocabulary is padded and
are checked against the model. Beside the weights, `hf/` keeps config, generation config and tokenizer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING

from sppo_megatron.cli.options import (
    SIDE_FOLDER,
    add_layout_arguments,
    add_output_arguments,
    check_absent,
    check_target,
    new_folder,
    parallelism_of,
    progress,
    run_command,
)

if TYPE_CHECKING:
    from sppo_megatron.hf.hf_model import HFModel


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="convert_hf_to_megatron", description=str(__doc__).splitlines()[0])
    parser.add_argument("--hf-path", required=True, help="a folder in Hugging Face format, or a hub id")
    add_output_arguments(parser)
    add_layout_arguments(parser)
    options = parser.parse_args(arguments)
    return run_command(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from sppo_megatron.cli.tables import print_rows
    from sppo_megatron.hf.hf_model import open_hf_model, open_weights
    from sppo_megatron.hf.inventory import tensor_rows
    from sppo_megatron.hf.load import check_names_and_shapes
    from sppo_megatron.hf.mapping import parameter_layouts

    check_absent(options.output, options.overwrite or options.dry_run)
    parallelism, model = parallelism_of(options), open_hf_model(options.hf_path)
    if not model.is_mapped and not options.dry_run:
        return _run_by_bridge(options, model)
    architecture = model.architecture
    check_target(parallelism, architecture.layout_sizes())
    tp = parallelism.tensor_model_parallel_size
    padded = architecture.padded_vocab_size(options.make_vocab_size_divisible_by, tp)
    layouts = parameter_layouts(architecture, padded)
    tensors = open_weights(model.folder, architecture.family)
    check_names_and_shapes(layouts, tensors.shapes())
    if options.dry_run:
        print_rows(tensor_rows(architecture, layouts, parallelism))
        return 0
    with new_folder(options.output, options.overwrite) as partial:
        _write(partial, architecture, padded, layouts, tensors)
        model.save_side_files(partial / SIDE_FOLDER)
    print(f"wrote {options.output}: {len(layouts)} parameters, the vocabulary padded to {padded}")
    return 0


def _run_by_bridge(options: argparse.Namespace, model: HFModel) -> int:
    """With the whole model in memory."""
    import torch

    from sppo_megatron.hf.hf_checkpoint import SafetensorsFolder
    from sppo_megatron.policy.initialize import initialize_distributed
    from sppo_megatron.policy.model.bridge import BridgeModel
    from sppo_megatron.policy.model.whole import store_model

    source = BridgeModel(model.folder, model.hf_config)
    check_target(parallelism_of(options), source.layout_sizes())
    tensors = SafetensorsFolder(model.folder)
    dtype = reduce(torch.promote_types, (tensors.source(name)[0:0].dtype for name in tensors.shapes()))
    initialize_distributed(timeout_minutes=5)
    with new_folder(options.output, options.overwrite) as partial:
        store_model(source, partial, dtype)
        model.save_side_files(partial / SIDE_FOLDER)
    print(f"wrote {options.output} by megatron-bridge")
    return 0


def _write(folder, architecture, padded_vocab_size, layouts, tensors) -> None:
    import torch
    from torch import Tensor

    from sppo_megatron.policy.checkpoint.weights import write_weights
    from sppo_megatron.policy.checkpoint.weights_table import WeightsTable
    from sppo_megatron.policy.initialize import initialize_distributed

    initialize_distributed(timeout_minutes=5)
    table = WeightsTable(architecture, padded_vocab_size)
    sources = {name: [tensors.source(hf_name) for hf_name in layouts[name].hf_names] for name in table.names()}
    dtypes = {name: reduce(torch.promote_types, (part[0:0].dtype for part in parts)) for name, parts in sources.items()}
    with progress("converting", len(sources)) as advance:

        def make(name: str) -> Tensor:
            advance()
            return layouts[name].shard(sources[name], 0, 1)

        write_weights(folder, table, make, dtypes)


if __name__ == "__main__":
    sys.exit(main())
