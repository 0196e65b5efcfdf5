"""The records of a data set, whatever holds them: JSONL, Parquet, a folder of Hugging Face `datasets`, the hub."""

from __future__ import annotations

import codecs
import importlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sppo_megatron.config.data import is_hub_id
from sppo_megatron.data.json_values import json_name, parse_array, parse_object
from sppo_megatron.errors import ConfigError

Record = dict[str, Any]
# A record and where it stands, counted from 1: "line 17", "row 17", "row 17 of part-2.parquet".
PlacedRecord = tuple[str, Record | ValueError]

_OTHER_SUFFIXES = {".csv": "CSV", ".tsv": "TSV", ".xlsx": "an Excel table"}
_OTHER_STARTS = (
    (codecs.BOM_UTF16_LE, "text in UTF-16"),
    (codecs.BOM_UTF16_BE, "text in UTF-16"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    (b"BZh", "compressed by bzip2"),
    (b"\xfd7zXZ", "compressed by xz"),
    (b"ARROW1", "an Arrow file"),
    (b"PK\x03\x04", "a zip archive"),
)
_SPLIT_NAMES = {"train", "validation", "test"}


class Split(NamedTuple):
    """The wanted split. name: None takes the only one there is, or `default`. key: what errors tell to set."""

    name: str | None
    default: str
    key: str


class _Missing:
    """No such column; null is another thing."""


MISSING = _Missing()


def column(record: Record, key: str) -> Any:
    """The value of the column, or of a column's field if key is "column.field"; MISSING without one."""
    if key in record:
        return record[key]
    value: Any = record
    for name in key.split("."):
        if not isinstance(value, dict) or name not in value:
            return MISSING
        value = value[name]
    return value


def column_error(record: Record, what: str, key: str, setting: str) -> ValueError:
    return ValueError(f"{what} {key!r} ({setting}); the keys are {sorted(record)}")


def read_records(path: str | Path, split: Split) -> Iterator[PlacedRecord]:
    """Every record in order; one that can't be read is a ValueError in its place, and reading goes on.

    path: a JSONL file in UTF-8 (blank lines are no records), a file that is one JSON array, a Parquet file, a folder of
    .parquet files in the order of their names (those of one split if the names begin with one), a folder of
    `datasets.save_to_disk`, any other folder that `datasets.load_dataset` takes, or a hub id, `org/name` or
    `org/name:configuration`.

    Raises ConfigError if there is no such file or split, the file is of another kind, or the whole can't be read; with
    what to install, if pyarrow or datasets is needed and missing.
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
        if not path.exists():
            raise ConfigError(f"there is no file {path}")
        return _of_file(path)
    name, _, configuration = str(path).partition(":")
    return _of_dataset(path, _import("datasets").load_dataset, (name, configuration or None), split)


def _of_file(path: Path) -> Iterator[PlacedRecord]:
    with open(path, "rb") as file:
        start = file.read(4096)
    if path.suffix == ".parquet" or start.startswith(b"PAR1"):
        return _of_parquet([path])
    kind = _OTHER_SUFFIXES.get(path.suffix.lower())
    kind = next((name for magic, name in _OTHER_STARTS if start.startswith(magic)), kind)
    if kind is None and b"\0" in start[:2]:
        kind = "text in UTF-16"
    if kind is not None:
        raise ConfigError(
            f"{path} is {kind}: give JSONL (an object a line, in UTF-8), a JSON array of objects, or Parquet"
        )
    is_array = start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
    return _of_json_array(path) if is_array else _of_json_lines(path)


def _of_json_lines(path: Path) -> Iterator[PlacedRecord]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield f"line {number}", parse_object(line)
                except ValueError as error:
                    yield f"line {number}", error


def _of_json_array(path: Path) -> Iterator[PlacedRecord]:
    try:
        records = parse_array(path.read_bytes().decode("utf-8-sig", errors="surrogateescape"))
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    for number, record in enumerate(records, start=1):
        is_object = isinstance(record, dict)
        yield f"element {number}", record if is_object else ValueError(f"is a JSON {json_name(record)}, not an object")


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
        except (arrow.ArrowException, UnicodeDecodeError) as error:
            raise ConfigError(f"{file} can't be read as Parquet, after {number} rows: {error}") from error


def _of_dataset(path: Path, load: Any, arguments: tuple, split: Split) -> Iterator[PlacedRecord]:
    _import("datasets").disable_progress_bars()
    try:
        loaded = load(*arguments)
    except Exception as error:  # datasets and the hub's client raise what they like
        raise ConfigError(f"{path} can't be loaded by Hugging Face datasets: {error}") from error
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
        raise ConfigError(f"{path} has no split {chosen!r}: set {split.key} to one of {', '.join(names)}")
    return chosen


def _check_no_split(path: Path, split: Split) -> None:
    if split.name is not None:
        raise ConfigError(f"{path} has no splits, and {split.key}={split.name}: set it to null")


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ConfigError(
            f'reading Parquet files and Hugging Face data sets needs {package}: pip install "sppo-megatron[data]"'
        ) from error
