"""The rollout file in binary: Parquet with the fields of the JSONL line as columns, one group a row.

    prompt_token_ids: list<int32>, prompt, answer: text, prompt_index: int64, human_token_ids: list<int32>,
    messages, extra, rewards: JSON text, source: text,
    responses: list<struct<token_ids: list<int32>, loss_mask: list<bool>, text, rollout_log_probs: list<float>,
        old_log_probs: list<float>, finish_reason, policy_version: int64, reward: double, correct: bool, error>>,
    preference: list<list<double>>

What a group or a response hasn't is null. Numbers lie byte by byte (byte-stream-split) and are compressed with zstd.
Every page has a checksum, which reading compares. The footer holds a summary.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sppo_megatron.data.rollout_record import INT32_MAX, to_group, to_record
from sppo_megatron.data.rollout_summary import RolloutSummary
from sppo_megatron.errors import ConfigError
from sppo_megatron.types import Group, Response

_SUMMARY = b"sppo_megatron.summary"
_BLOCK = 1 << 20  # response tokens of the groups that are compressed together, and that are in memory at a time
_TEXTS = ("text", "finish_reason", "error")
_ARRAYS = {"token_ids": np.int32, "loss_mask": np.bool_, "rollout_log_probs": np.float32, "old_log_probs": np.float32}
_SCALARS = {"policy_version": pa.int64(), "reward": pa.float64(), "correct": pa.bool_()}
_OF_PROMPT = ("prompt", "answer", "messages", "extra", "source", "rewards")
_AS_JSON = ("messages", "extra", "rewards")
_PROMPT_IDS = ("prompt_token_ids", "human_token_ids")
_SPLIT = (
    *(f"responses.list.element.{name}.list.element" for name in _ARRAYS if name != "loss_mask"),
    *(f"{name}.list.element" for name in _PROMPT_IDS),
    "preference.list.element.list.element",
)
_OPTIONS: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": False,
    "write_statistics": False,
    "write_page_checksum": True,
    "column_encoding": dict.fromkeys(_SPLIT, "BYTE_STREAM_SPLIT"),
}


def write_table(file: BinaryIO, groups: Iterable[Group]) -> None:
    """Writes the whole file. Raises ValueError naming the group that breaks one of `read_groups`' rules."""
    summary = RolloutSummary()
    with pq.ParquetWriter(file, _table([]).schema, **_OPTIONS) as writer:
        for block in _blocks(groups):
            _check(block, len(summary.responses))
            for group in block:
                summary.add(group)
            writer.write_table(_table(block), row_group_size=len(block))
        writer.add_key_value_metadata({_SUMMARY: summary.to_bytes()})


def stored_summary(path: str | Path) -> RolloutSummary:
    """From the footer. Raises ConfigError as `iterate_table`."""
    with _open(path) as file:
        return _summary(path, file)


def iterate_table(path: str | Path, start: int = 0, stop: int | None = None) -> Iterator[Group]:
    """Groups start..stop; blocks of groups that hold none of them are not read.

    Raises ConfigError naming the file: no Parquet, none of this trainer's, a page whose checksum is another, values
    that break one of `read_groups`' rules.
    """
    with _open(path) as file:
        counts = _summary(path, file).responses
        first = 0
        for block in range(file.num_row_groups):
            end = first + file.metadata.row_group(block).num_rows
            if end > start and (stop is None or first < stop):
                groups = _read_block(path, file, block, first)
                if [len(group.responses) for group in groups] != counts[first:end]:
                    raise ConfigError(f"{path}: its footer counts other responses than it holds")
                yield from groups[max(0, start - first) : None if stop is None else max(0, stop - first)]
            first = end


def _read_block(path: str | Path, file: pq.ParquetFile, block: int, first: int) -> list[Group]:
    try:
        groups = _groups(file.read_row_group(block), first)
        _check(groups, first)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise ConfigError(f"{path}: {error}") from error
    return groups


def _open(path: str | Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{path} is no Parquet file, or was cut off: {error}") from None


def _summary(path: str | Path, file: pq.ParquetFile) -> RolloutSummary:
    stored = (file.metadata.metadata or {}).get(_SUMMARY)
    if stored is None:
        raise ConfigError(
            f"{path} wasn't written by this trainer: its footer has no {_SUMMARY.decode()}. Give rollouts of your own "
            "as JSONL"
        )
    try:
        return RolloutSummary.from_bytes(stored)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: its footer is damaged: {error}") from None


def _blocks(groups: Iterable[Group]) -> Iterator[list[Group]]:
    block: list[Group] = []
    tokens = 0
    for group in groups:
        block.append(group)
        tokens += sum(len(response.token_ids) for response in group.responses)
        if tokens >= _BLOCK:
            yield block
            block, tokens = [], 0
    if block:
        yield block


def _check(groups: Sequence[Group], first: int) -> None:
    """Raises ValueError in the words of the JSONL file: a group that looks wrong is looked at closely."""
    for number, group in enumerate(groups, start=first + 1):
        k = len(group.responses)
        matrix = np.zeros((k, k)) if group.preference is None else np.asarray(group.preference)
        if not all(map(_looks_right, group.responses)) or matrix.shape != (k, k) or not np.isfinite(matrix).all():
            try:
                to_group(to_record(group), 0)
            except ValueError as error:
                raise ValueError(f"group {number}: {error}") from None


def _looks_right(response: Response) -> bool:
    count = len(response.token_ids)
    columns = (response.rollout_log_probs, response.old_log_probs, response.loss_mask)
    return (
        all(column is None or len(column) == count for column in columns)
        and (not count or (int(response.token_ids.min()) >= 0 and int(response.token_ids.max()) <= INT32_MAX))
        and all(column is None or bool(np.isfinite(column.sum())) for column in columns[:2])
        and (response.reward is None or bool(np.isfinite(response.reward)))
    )


# ---------------------------------------------------------------- groups to columns


def _table(groups: Sequence[Group]) -> pa.Table:
    prompts = [_prompt_record(group, number) for number, group in enumerate(groups, start=1)]
    responses = [response for group in groups for response in group.responses]
    fields: dict[str, pa.Array] = {
        name: _lists([getattr(response, name) for response in responses], dtype) for name, dtype in _ARRAYS.items()
    }
    fields |= {name: _texts([getattr(response, name) for response in responses]) for name in _TEXTS}
    fields |= {name: pa.array([getattr(r, name) for r in responses], kind) for name, kind in _SCALARS.items()}
    matrices = [None if g.preference is None else np.asarray(g.preference, np.float64) for g in groups]
    rows = _lists([row for matrix in matrices if matrix is not None for row in matrix], np.float64)
    columns = {name: _texts([record.get(name) for record in prompts]) for name in _OF_PROMPT}
    columns |= {name: _lists([record[name] for record in prompts], np.int32) for name in _PROMPT_IDS}
    columns["prompt_index"] = pa.array([group.prompt.index for group in groups], pa.int64())
    of_responses = pa.StructArray.from_arrays(list(fields.values()), list(fields))
    columns["responses"] = _nested([len(group.responses) for group in groups], of_responses)
    columns["preference"] = _nested([None if matrix is None else len(matrix) for matrix in matrices], rows)
    return pa.table(columns)


def _prompt_record(group: Group, number: int) -> dict[str, Any]:
    """What the JSONL line says of the prompt, checked as that is."""
    try:
        record = to_record(Group(group.prompt))
        to_group(record, 0)
    except ValueError as error:
        raise ValueError(f"group {number}: {error}") from None
    as_json = {name: json.dumps(record[name]) for name in _AS_JSON if name in record}
    return record | as_json | {"human_token_ids": group.prompt.human_token_ids}


def _lists(arrays: Sequence[Any], dtype: type) -> pa.ListArray:
    """A list for each array, null for None."""
    given: list[np.ndarray] = [np.asarray(array, dtype) for array in arrays if array is not None]
    flat = np.concatenate(given) if given else np.zeros(0, dtype)
    return _nested([None if array is None else len(array) for array in arrays], pa.array(flat))


def _nested(lengths: Sequence[int | None], values: pa.Array) -> pa.ListArray:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum([length or 0 for length in lengths], out=offsets[1:])
    nulls = pa.array([length is None for length in lengths], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=nulls)


def _texts(texts: Sequence[str | None]) -> pa.Array:
    """UTF-8; half a surrogate pair is kept as its three bytes."""
    encoded = [None if text is None else text.encode("utf-8", "surrogatepass") for text in texts]
    return pa.array(encoded, pa.binary()).view(pa.string())


# ---------------------------------------------------------------- columns to groups


def _groups(table: pa.Table, first: int) -> list[Group]:
    """first: the place in the file of the table's first group."""
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    texts = {name: _to_texts(columns[name]) for name in _OF_PROMPT}
    ids = {name: _to_arrays(columns[name], np.int32) for name in _PROMPT_IDS}
    indices = columns["prompt_index"].to_pylist()
    responses = _responses(columns["responses"].values)
    rows = _to_arrays(columns["preference"].values, np.float64)
    bounds, of_rows = (columns[name].offsets.to_pylist() for name in ("responses", "preference"))
    has_preference = columns["preference"].is_valid().to_pylist()
    groups = []
    for place, (begin, end) in enumerate(pairwise(bounds)):
        record: dict[str, Any] = {name: texts[name][place] for name in _OF_PROMPT}
        record |= {name: json.loads(record[name]) for name in _AS_JSON if record[name] is not None}
        record |= {name: None if ids[name][place] is None else ids[name][place].tolist() for name in _PROMPT_IDS}
        try:
            prompt = to_group(record | {"prompt_index": indices[place], "responses": []}, first + place).prompt
        except ValueError as error:
            raise ValueError(f"group {first + place + 1}: {error}") from None
        matrix = np.array(rows[of_rows[place] : of_rows[place + 1]], np.float64)
        preference = matrix.reshape(end - begin, end - begin) if has_preference[place] else None
        groups.append(Group(prompt, responses[begin:end], preference))
    return groups


def _responses(stored: pa.StructArray) -> list[Response]:
    fields: dict[str, list[Any]] = {name: _to_arrays(stored.field(name), dtype) for name, dtype in _ARRAYS.items()}
    fields |= {name: _to_texts(stored.field(name)) for name in _TEXTS}
    fields |= {name: stored.field(name).to_pylist() for name in _SCALARS}
    responses = [Response(**dict(zip(fields, values, strict=True))) for values in zip(*fields.values(), strict=True)]
    for response in responses:
        if response.loss_mask is not None:
            for log_probs in (response.rollout_log_probs, response.old_log_probs):
                if log_probs is not None:
                    log_probs[~response.loss_mask] = 0
    return responses


def _to_arrays(lists: pa.ListArray, dtype: type) -> list[Any]:
    """Parts of one array that can be written to."""
    values: np.ndarray = np.array(lists.values.to_numpy(zero_copy_only=False), dtype)
    bounds = pairwise(lists.offsets.to_pylist())
    valid = lists.is_valid().to_pylist()
    return [values[begin:end] if there else None for (begin, end), there in zip(bounds, valid, strict=True)]


def _to_texts(column: pa.Array) -> list[str | None]:
    encoded = column.view(pa.binary()).to_pylist()
    return [None if text is None else text.decode("utf-8", "surrogatepass") for text in encoded]
