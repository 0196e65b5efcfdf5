"""The records of a data set, whatever holds them: JSONL, Parquet, a folder of Hugging Face `datasets`, the hub."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sppo_megatron.config.checks.data import is_hub_id

Record = dict[str, Any]
# A record and where it stands, counted from 1: "line 17", "row 17", "row 17 of part-2.parquet".
PlacedRecord = tuple[str, Record | ValueError]

_SPLIT_NAMES = {"train", "validation", "test"}


class Split(NamedTuple):
    """The wanted split. name: None takes the only one there is, or `default`. key: what errors tell to set."""

    name: str | None
    default: str
    key: str


def read_records(path: str | Path, split: Split) -> Iterator[PlacedRecord]:
    """Every record in order; one that can't be read is a ValueError in its place, and reading goes on.

    path: a JSONL file (blank lines are no records), a .parquet file, a folder of .parquet files in the order of their
    names (those of one split where the names begin with one), a folder of `datasets.save_to_disk`, any other folder
    that `datasets.load_dataset` takes, or a hub id, `org/name` or `org/name:configuration`.

    Raises FileNotFoundError; ValueError where there is no such split or the whole can't be read; ImportError, with what
    to install, without pyarrow or datasets where they are needed.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            return _of_dataset(path, _import("datasets").load_from_disk, (str(path),), split)
        files = sorted(path.glob("*.parquet"))
        if files:
            return _of_parquet_files(path, files, split)
        return _of_dataset(path, _import("datasets").load_dataset, (str(path),), split)
    if path.exists() or not is_hub_id(str(path)):
        _check_no_split(path, split)
        return _of_parquet([path]) if path.suffix == ".parquet" else _of_json_lines(path)
    name, _, configuration = str(path).partition(":")
    return _of_dataset(path, _import("datasets").load_dataset, (name, configuration or None), split)


def _of_json_lines(path: Path) -> Iterator[PlacedRecord]:
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"line {number}", _parse(line)


def _parse(line: str) -> Record | ValueError:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        return ValueError(f"not JSON ({error.msg} at column {error.colno})")
    if not isinstance(record, dict):
        return ValueError(f"is a JSON {type(record).__name__}, not an object")
    return record


def _of_parquet_files(folder: Path, files: list[Path], split: Split) -> Iterator[PlacedRecord]:
    """The hub's names are `train-00000-of-00002.parquet`; files with other names are one whole."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(re.split(r"[-_.]", file.name)[0], []).append(file)
    if splits.keys() & _SPLIT_NAMES:
        files = splits[_choose(folder, splits, split)]
    else:
        _check_no_split(folder, split)
    return _of_parquet(files)


def _of_parquet(files: list[Path]) -> Iterator[PlacedRecord]:
    parquet, arrow = _import("pyarrow.parquet"), _import("pyarrow")
    for file in files:
        where = f" of {file.name}" if len(files) > 1 else ""
        number = 0
        try:
            for batch in parquet.ParquetFile(file).iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    yield f"row {number}{where}", record
        except arrow.ArrowException as error:
            raise ValueError(f"{file} can't be read as Parquet, after {number} rows: {error}") from error


def _of_dataset(path: Path, load: Any, arguments: tuple, split: Split) -> Iterator[PlacedRecord]:
    _import("datasets").disable_progress_bars()
    try:
        loaded = load(*arguments)
    except Exception as error:  # datasets and the hub's client raise what they like
        raise ValueError(f"{path} can't be loaded by Hugging Face datasets: {error}") from error
    if isinstance(loaded, dict):
        loaded = loaded[_choose(path, loaded, split)]
    else:
        _check_no_split(path, split)
    for number, record in enumerate(loaded, start=1):
        yield f"row {number}", record


def _choose(path: Path, splits: Iterable[str], split: Split) -> str:
    names = sorted(splits)
    chosen = split.name or (names[0] if len(names) == 1 else split.default)
    if chosen not in names:
        raise ValueError(f"{path} has no split {chosen!r}: set {split.key} to one of {', '.join(names)}")
    return chosen


def _check_no_split(path: Path, split: Split) -> None:
    if split.name is not None:
        raise ValueError(f"{path} has no splits, and {split.key}={split.name}: set it to null")


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f'reading Parquet files and Hugging Face data sets needs {package}: pip install "sppo-megatron[data]"'
        ) from error
