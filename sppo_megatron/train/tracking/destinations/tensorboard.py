"""TensorBoard's event files, in output_dir/tensorboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sppo_megatron.train.tracking.destinations.base import DestinationKind, Run


class TensorBoard:
    """Hides what an interrupted run had logged behind the checkpoint that it continues from."""

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge_step = 0 if run.resume_step is None else run.resume_step + 1
        self._writer = SummaryWriter(log_dir=str(run.output_dir / "tensorboard"), purge_step=purge_step)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, number in numbers.items():
            if name not in ("step", "eval_step"):
                self._writer.add_scalar(name, number, step)
        self._writer.flush()

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """As a table in Markdown, each text a code span of one line."""
        lines = [columns, ["---"] * len(columns), *[map(_cell, row) for row in rows]]
        self._writer.add_text(name, "\n".join(f"| {' | '.join(line)} |" for line in lines), step)

    def close(self) -> None:
        self._writer.close()


def _cell(value: Any) -> str:
    if not isinstance(value, str):
        return "" if value is None else f"{value:.6g}"
    return "`" + value.replace("`", "'").replace("|", "\\|").replace("\n", "⏎") + "`" if value else ""


TENSORBOARD = DestinationKind(
    "tensorboard", "tensorboard", "tensorboard", "pip install tensorboard, or set it to false", TensorBoard
)
