"""A run's rollout files as plain pyarrow reads them, in the form of the JSONL lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


def stored_groups(output: Path, iteration: int) -> list[dict[str, Any]]:
    """One record for each group of an iteration."""
    return read_records(rollout_path(output, iteration))


def rollout_path(output: Path, iteration: int) -> Path:
    return output / "rollouts" / f"iteration_{iteration:06d}.parquet"


def read_records(path: Path) -> list[dict[str, Any]]:
    """Fields that a group or a response hasn't are left out."""
    records = []
    for row in pq.read_table(path).to_pylist():
        record = _given(row)
        record |= {name: json.loads(record[name]) for name in ("messages", "extra") if name in record}
        records.append(record | {"responses": [_given(response) for response in record["responses"]]})
    return records


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
