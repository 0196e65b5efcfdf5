"""Tables that the checkpoint commands print."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from sppo_megatron.hf.inventory import TensorRow


def print_rows(rows: Iterable[TensorRow]) -> None:
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
