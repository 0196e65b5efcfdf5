"""Trackio. It writes to its own folder on this machine (TRACKIO_DIR), which `trackio show` opens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sppo_megatron.train.tracking.destinations.base import DestinationKind, Run


class Trackio:
    """A run is known there by its name, which is that of output_dir when it began."""

    def __init__(self, run: Run) -> None:
        import trackio

        known = run.known_id("trackio")
        self._run = trackio.init(
            project=str(run.config.trackio_project),
            name=known or run.name,
            config=dict(run.settings),
            resume="never" if known is None else "allow",
        )
        run.note_id("trackio", self._run.name)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        import pandas
        import trackio

        self._run.log({name: trackio.Table(dataframe=pandas.DataFrame(rows, columns=list(columns)))}, step=step)

    def close(self) -> None:
        self._run.finish()


TRACKIO = DestinationKind(
    "trackio", "trackio_project", "trackio", 'pip install "sppo-megatron[trackio]", or set it to null', Trackio
)
