"""A file of lines that is written batch by batch and continued after a kill at any byte."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sppo_megatron.data.atomic_file import replace, write_atomically
from sppo_megatron.errors import ConfigError


class ResumableFile:
    """Lines go to FILE.partial, which gets its name when all of them are there. One process writes it.

    settings: JSON values that decide the content. They are kept beside it, in FILE.partial.json, and a partial file of
    other ones is not continued. overwrite: FILE may be there, and is kept until its successor is whole.

    Raises ConfigError if FILE is there and may not be replaced, or its partial file has other settings; the
    message says which differ and what to do.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], overwrite: bool = False) -> None:
        self.path = Path(path)
        if self.path.exists() and not overwrite:
            raise ConfigError(f"{self.path} exists: give another --output, or --overwrite to replace it")
        self._partial = self.path.with_name(f"{self.path.name}.partial")
        self._sidecar = self.path.with_name(f"{self.path.name}.partial.json")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        settings = json.loads(json.dumps(settings))  # as they are read back
        if self._partial.exists():
            self._check_settings(settings)
        else:
            # First, so that there is no partial file without them.
            write_atomically(self._sidecar, json.dumps(settings, indent=1) + "\n")
        self._file = open(self._partial, "ab+")  # noqa: SIM115
        self._ends = self._line_ends()
        self.keep_lines(len(self._ends))

    @property
    def num_lines(self) -> int:
        """Whole lines that are there."""
        return len(self._ends)

    def keep_lines(self, count: int) -> None:
        """Cuts off what follows the first `count` lines, a torn last line too."""
        self._ends = self._ends[:count]
        self._file.truncate(self._ends[-1] if self._ends else 0)
        self._sync()

    def append(self, lines: Iterable[bytes]) -> None:
        """Adds lines, each with its end. They are on the disk when this returns."""
        start = self._ends[-1] if self._ends else 0
        for line in lines:
            assert line.endswith(b"\n") and line.count(b"\n") == 1, "one line"
            start += len(line)
            self._ends.append(start)
            self._file.write(line)
        self._sync()

    def finish(self) -> None:
        """Gives the file its name."""
        self._file.close()
        replace(self._partial, self.path)
        self._sidecar.unlink(missing_ok=True)

    def close(self) -> None:
        """Leaves what is written to be continued."""
        self._file.close()

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def _line_ends(self) -> list[int]:
        """The offset behind each whole line, in bytes."""
        self._file.seek(0)
        ends, offset = [], 0
        for line in self._file:
            offset += len(line)
            if line.endswith(b"\n"):
                ends.append(offset)
        return ends

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        anew = f"delete {self._partial} to begin anew, or give another --output"
        try:
            stored = json.loads(self._sidecar.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self._sidecar}, which says what {self._partial} holds, is gone: {anew}") from error
        differing = [key for key in {**stored, **settings} if stored.get(key) != settings.get(key)]
        if differing:
            texts = [f"{key} was {_short(stored.get(key))} and is {_short(settings.get(key))}" for key in differing]
            raise ConfigError(f"{self._partial} was begun with other settings ({'; '.join(texts)}): {anew}")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
