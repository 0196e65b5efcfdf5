"""The binary rollout file: the JSONL line's fields as any reader of Parquet sees them, and nothing broken passes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sppo_megatron.data import rollout_parquet
from sppo_megatron.data.rollout_file import group_line, iterate_groups, read_groups, summarize, write_groups
from sppo_megatron.data.rollout_summary import RolloutSummary
from sppo_megatron.errors import ConfigError
from sppo_megatron.types import Group, Prompt, Response

ROWS = "responses.list.element.token_ids.list.element"


def make_groups(count: int = 6) -> list[Group]:
    """Every field is there in some group and missing in another."""
    rng = np.random.default_rng(0)
    groups = []
    for index in range(count):
        ids = [rng.integers(0, 2**31 - 1, length).astype(np.int32) for length in (4, 0, 7)]
        mask = np.array([True, False, True, True])
        first = Response(
            ids[0],
            text="½ \ud800",
            rollout_log_probs=np.where(mask, rng.normal(size=4), 0).astype(np.float32),
            old_log_probs=np.where(mask, rng.normal(size=4), 0).astype(np.float32),
            reward=float(rng.normal()),
            correct=index % 2 == 0,
            error="none",
            policy_version=2**40,
            loss_mask=mask,
        )
        others = [Response(ids[1]), Response(ids[2], finish_reason="length", reward=-0.0)]
        prompt = Prompt(index + 10, ids[2] // 2 + 1)
        if index % 2:
            prompt = Prompt(index, ids[0], "x", "7", ids[2], [{"role": "user", "content": "Hi"}], {"a": [1]}, "math")
        groups.append(Group(prompt, [first, *others], rng.random((3, 3)) if index % 3 else None))
    return groups


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_parquet, "_BLOCK", 20)  # tokens: two groups


def test_plain_pyarrow_sees_the_lines_of_the_jsonl_file(tmp_path: Path, small_blocks: None) -> None:
    groups = make_groups()
    for group in groups:
        object.__setattr__(group.responses[0], "text", "½")  # half a surrogate pair is no UTF-8
    write_groups(tmp_path / "r.parquet", groups)
    rows = pq.read_table(tmp_path / "r.parquet").to_pylist()
    assert pq.ParquetFile(tmp_path / "r.parquet").num_row_groups == 3
    for row, group in zip(rows, groups, strict=True):
        for name in ("messages", "extra"):
            row[name] = row[name] and json.loads(row[name])
        row["responses"] = [_without_nulls(response) for response in row["responses"]]
        assert _without_nulls(row) == json.loads(group_line(group)) | {"responses": row["responses"]}
        for found, expected in zip(row["responses"], json.loads(group_line(group))["responses"], strict=True):
            assert found == expected


def _without_nulls(record: dict) -> dict:
    return {name: value for name, value in record.items() if value is not None}


def test_a_slice_reads_its_own_blocks_only(tmp_path: Path, small_blocks: None) -> None:
    path = tmp_path / "r.parquet"
    groups = make_groups()
    write_groups(path, groups)
    assert summarize(path).responses == [3] * 6
    lines = [group_line(group) for group in groups]
    for start in range(8):
        for stop in (None, *range(8)):
            assert [group_line(group) for group in read_groups(path, start, stop)] == lines[start:stop]
    corrupt_page(path, block=2)
    assert summarize(path).responses == [3] * 6, "of the footer alone"
    assert [group_line(group) for group in read_groups(path, 1, 4)] == lines[1:4]
    with pytest.raises(ConfigError, match=r"r.parquet: .*(CRC|checksum)"):
        read_groups(path)


def corrupt_page(path: Path, block: int) -> None:
    """Flips a bit in the middle of a column's compressed bytes."""
    metadata = pq.ParquetFile(path).metadata.row_group(block)
    columns = [metadata.column(number) for number in range(metadata.num_columns)]
    [column] = [column for column in columns if column.path_in_schema == ROWS]
    content = bytearray(path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 5] ^= 16
    path.write_bytes(content)


def test_no_flipped_bit_passes(tmp_path: Path) -> None:
    """Whatever byte is hit: either an error that names the file, or the very same groups."""
    path = tmp_path / "r.parquet"
    groups = make_groups(2)
    write_groups(path, groups)
    content, lines = path.read_bytes(), [group_line(group) for group in groups]
    noticed = 0
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            found = [group_line(group) for group in iterate_groups(path)]
        except ConfigError as error:
            assert "r.parquet" in str(error)
            noticed += 1
        else:
            assert found == lines, place
    assert noticed > len(content) / 7 / 4


@pytest.mark.parametrize("length", [0, 3, 200, -1])
def test_cut_off(tmp_path: Path, length: int) -> None:
    path = tmp_path / "r.parquet"
    write_groups(path, make_groups())
    path.write_bytes(path.read_bytes()[:length])
    for read in (read_groups, summarize):
        with pytest.raises(ConfigError, match=r"r.parquet is no Parquet file, or was cut off"):
            read(path)


def test_somebody_elses_table(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["x"]}), tmp_path / "r.parquet")
    with pytest.raises(ConfigError, match="wasn't written by this trainer"):
        read_groups(tmp_path / "r.parquet")


def test_nothing(tmp_path: Path) -> None:
    write_groups(tmp_path / "r.parquet", [])
    assert read_groups(tmp_path / "r.parquet") == [] and summarize(tmp_path / "r.parquet") == RolloutSummary()


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (Response(np.array([1, -1], np.int32)), r"response 1: token_ids\[1\] must be an integer"),
        (Response(np.array([1], np.int32), rollout_log_probs=np.array([np.nan])), r"rollout_log_probs\[0\] is not"),
        (Response(np.array([1], np.int32), old_log_probs=np.zeros(2)), "old_log_probs has 2 values for 1"),
        (Response(np.array([1], np.int32), loss_mask=np.ones(3, bool)), "loss_mask has 3 values for 1"),
        (Response(np.array([1], np.int32), reward=float("inf")), "reward must be a finite number"),
    ],
)
def test_what_breaks_a_rule_is_not_written(tmp_path: Path, response: Response, message: str) -> None:
    path = tmp_path / "r.parquet"
    write_groups(path, make_groups(1))
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=f"cannot write .*r.parquet: group 2: .*{message}"):
        write_groups(path, [*make_groups(1), Group(Prompt(0, np.array([1], np.int32)), [response])])
    with pytest.raises(ConfigError, match="group 1: preference must be a 1×1 matrix"):
        good = Response(np.array([1], np.int32))
        write_groups(path, [Group(Prompt(0, np.array([1], np.int32)), [good], np.eye(2))])
    with pytest.raises(ConfigError, match="group 1: prompt_token_ids is empty"):
        write_groups(path, [Group(Prompt(0, np.zeros(0, np.int32)))])
    assert path.read_bytes() == before and [entry.name for entry in tmp_path.iterdir()] == ["r.parquet"]
