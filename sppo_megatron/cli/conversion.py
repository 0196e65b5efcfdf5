"""Both directions of `sppo convert`. What it imports is heavy: sppo_megatron.cli.convert is the command.

One tensor is in memory at a time.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from functools import reduce
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sppo_megatron.cli.options import SIDE_FOLDER, check_target, config_of, parallelism_of
from sppo_megatron.cluster.consensus import agreed
from sppo_megatron.config import ParallelismConfig
from sppo_megatron.data.atomic_file import atomic_folder
from sppo_megatron.hf.hf_model import HFModel, open_hf_model, open_weights
from sppo_megatron.hf.inventory import TensorRow, tensor_rows
from sppo_megatron.hf.load import check_tensors
from sppo_megatron.hf.mapping import parameter_layouts
from sppo_megatron.hf.save import save_hf_folder, save_weights
from sppo_megatron.hf.untrained import untrained_names, untrained_tensors
from sppo_megatron.policy.checkpoint.weights import StoredWeights, write_weights
from sppo_megatron.policy.checkpoint.weights_table import WeightsTable
from sppo_megatron.policy.initialize import initialize_distributed
from sppo_megatron.train.tracking.console import counting

TIMEOUT_MINUTES = 5


def to_megatron(options: argparse.Namespace) -> None:
    """Raises ConfigError if the model can't be read, is of no known family, or can't be cut into the given layout."""
    initialize_distributed(TIMEOUT_MINUTES)
    model = agreed(lambda: open_hf_model(options.hf_path))
    parallelism, architecture = parallelism_of(options), agreed(lambda: model.architecture)
    check_target(parallelism, architecture.layout_sizes())
    padded = architecture.padded_vocab_size(
        options.make_vocab_size_divisible_by, parallelism.tensor_model_parallel_size
    )
    layouts = parameter_layouts(architecture, padded)
    tensors = agreed(lambda: open_weights(model.folder, architecture))
    agreed(lambda: check_tensors(layouts, tensors))
    if options.dry_run:
        return _print_rows(tensor_rows(architecture, layouts, parallelism))
    table = WeightsTable(architecture, padded)
    sources = {name: [tensors.source(hf_name) for hf_name in layouts[name].hf_names] for name in table.names()}
    dtypes = {name: reduce(torch.promote_types, (part[0:0].dtype for part in parts)) for name, parts in sources.items()}
    with atomic_folder(options.output) as partial, counting("parameter", len(sources)) as advance:

        def make(name: str) -> Tensor:
            advance()
            return layouts[name].shard(sources[name], 0, 1)

        write_weights(partial, table, make, dtypes)
        model.save_side_files(partial / SIDE_FOLDER)
        if untrained_names(model.folder, architecture):
            save_weights(partial / SIDE_FOLDER, untrained_tensors(model.folder, architecture))
    print(f"wrote {options.output}: {len(layouts)} parameters, the vocabulary padded to {padded}")
    return None


def to_hf(options: argparse.Namespace) -> None:
    """Raises ConfigError if there is no such checkpoint, or it holds another model."""
    initialize_distributed(TIMEOUT_MINUTES)
    model = agreed(lambda: open_hf_model(config_of(options.megatron_path, options.hf_path)))
    architecture = agreed(lambda: model.architecture)
    stored = agreed(lambda: open_stored(model, options.megatron_path))
    if options.dry_run:
        layouts = parameter_layouts(architecture, architecture.vocab_size)
        return _print_rows(tensor_rows(architecture, layouts, ParallelismConfig()))
    count = write_hf(model, stored, options.output)
    print(f"wrote {options.output}: {count} parameters")
    return None


def open_stored(model: HFModel, megatron_path: Path) -> StoredWeights:
    """Raises ConfigError if there is no such checkpoint, or it holds another model."""
    architecture = model.architecture
    return StoredWeights(megatron_path, WeightsTable(architecture, architecture.vocab_size))


def write_hf(model: HFModel, stored: StoredWeights, output: Path) -> int:
    """The stored weights as a folder in Hugging Face format, written beside it and renamed; how many there are."""
    architecture = model.architecture
    layouts = parameter_layouts(architecture, architecture.vocab_size)
    with counting("parameter", len(layouts)) as advance:

        def tensors() -> Iterator[tuple[str, Tensor]]:
            for name, layout in layouts.items():
                yield from zip(layout.hf_names, layout.unshard([stored.read(name)]), strict=True)
                advance()
            yield from untrained_tensors(model.folder, architecture)

        save_hf_folder(output, tensors(), model.hf_config, model.folder)
    return len(layouts)


def _print_rows(rows: Iterable[TensorRow]) -> None:
    """Every tensor, on standard output, and how many there are."""
    table = Table("Hugging Face tensor", "shape", "Megatron parameter", "layout", "shard", "stage", "expert rank")
    count = 0
    for row in rows:
        table.add_row(
            row.hf_name,
            _times(row.shape),
            row.megatron_name,
            row.layout,
            _times(row.shard_shape),
            str(row.stage),
            "" if row.expert_rank is None else str(row.expert_rank),
        )
        count += 1
    console = Console()
    console = console if console.is_terminal else Console(width=240)
    console.print(table)
    console.print(f"{count} tensors; nothing was written")


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
