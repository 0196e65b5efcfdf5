"""Where the prompts come from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sppo_megatron.config import Config

_FILES = (".jsonl", ".json", ".parquet", ".csv", ".txt")


def is_hub_id(path: str) -> bool:
    """Whether it reads as `org/name` or `org/name:configuration`, and not as a data file."""
    return Path(path).suffix not in _FILES and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(:[\w.-]+)?", path) is not None


def check_data(config: Config) -> Iterator[str]:
    for key in ("train_path", "eval_path"):
        path = getattr(config.data, key)
        if path is not None and not Path(path).exists() and not is_hub_id(path):
            yield f"data.{key}={path} does not exist"
