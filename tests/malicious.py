"""Files of a stranger: each would write a marker file if anything in it was run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CODE = "import pathlib\npathlib.Path({!r}).write_text('run')\n"


class Touch:
    """Unpickled, it writes the marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)
