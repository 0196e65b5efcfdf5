"""What a destination of metrics is, and what is known of it before it is started."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from sppo_megatron.config import LoggerConfig
from sppo_megatron.data.atomic_file import write_atomically
from sppo_megatron.errors import ConfigError


@dataclass(frozen=True)
class Run:
    """What a destination is told of the run. settings: its resolved configuration.

    resume_step: the optimizer step of the checkpoint continued from, None of a fresh run.
    """

    output_dir: Path
    config: LoggerConfig
    resume_step: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.output_dir.resolve().name

    def known_id(self, destination: str) -> str | None:
        """What the destination called this run before it was interrupted; None of a fresh run."""
        file = self._id_file(destination)
        return file.read_text().strip() if self.resume_step is not None and file.exists() else None

    def note_id(self, destination: str, run_id: str) -> None:
        """For a resume, which continues the same run there."""
        write_atomically(self._id_file(destination), run_id + "\n")

    def _id_file(self, destination: str) -> Path:
        return self.output_dir / f"{destination}_run_id.txt"


class Destination(Protocol):
    """Takes what one rank logs. Steps count optimizer steps; after a resume they may begin before the last one."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """numbers: with the step itself, under `step`, or `eval_step` of an evaluation."""
        ...

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """rows: texts, numbers and None."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class DestinationKind:
    """One destination. key: of `logger`, which turns it on. package: what must be installed, install: how.

    start: begins a run there, or goes on with the one that was interrupted.
    """

    name: str
    key: str
    package: str
    install: str
    start: Callable[[Run], Destination]

    def is_wanted(self, config: LoggerConfig) -> bool:
        return bool(getattr(config, self.key))

    def check_installed(self) -> None:
        """Raises ConfigError that says what to install. Doesn't import it."""
        if find_spec(self.package) is None:
            raise ConfigError(f"logger.{self.key} is set, which needs the package {self.package}: {self.install}")
