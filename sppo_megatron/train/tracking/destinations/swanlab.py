"""SwanLab. SWANLAB_MODE=offline writes to output_dir/swanlog alone, for `swanlab sync`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sppo_megatron.train.tracking.destinations.base import DestinationKind, Run


class SwanLab:
    def __init__(self, run: Run) -> None:
        import swanlab

        known = run.known_id("swanlab")
        self._run = swanlab.init(
            project=run.config.swanlab_project,
            experiment_name=run.name,
            config=dict(run.settings),
            logdir=str(run.output_dir / "swanlog"),
            id=known,
            resume="never" if known is None else "allow",
        )
        run.note_id("swanlab", self._run.id)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """One text a row, in which every column stands on lines of its own."""
        import swanlab

        texts = ["\n".join(f"{column}: {value}" for column, value in zip(columns, row, strict=True)) for row in rows]
        self._run.log({name: [swanlab.Text(text) for text in texts]}, step=step)

    def close(self) -> None:
        import swanlab

        swanlab.finish()


SWANLAB = DestinationKind(
    "swanlab", "swanlab_project", "swanlab", 'pip install "sppo-megatron[swanlab]", or set it to null', SwanLab
)
