"""The rollout file: what a run writes and what a replay reads, one group after the other.

NAME.parquet is binary (see rollout_parquet.py); every other name is JSONL, for people and for exchange. A line is
    {"prompt_token_ids": [..], "prompt": "..", "answer": "..", "prompt_index": 3, "human_token_ids": [..],
     "messages": [{"role": "user", "content": ".."}], "extra": {"difficulty": 2}, "source": "math", "responses": [
      {"token_ids": [..], "loss_mask": [0|1, ..], "text": "..", "rollout_log_probs": [..], "finish_reason": "stop",
       "reward": 0.5, "policy_version": 12, "old_log_probs": [..], "correct": true, "error": ".."}],
     "preference": [[..]]}
Only prompt_token_ids and responses with their token_ids are required. Unknown fields are ignored. Log-probs are written
with all the digits a float32 needs, so they are read back bitwise. Without loss_mask every token counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from sppo_megatron.data.atomic_file import atomic_file
from sppo_megatron.data.json_values import parse_object
from sppo_megatron.data.rollout_record import to_group, to_record
from sppo_megatron.data.rollout_summary import RolloutSummary, summary_of
from sppo_megatron.errors import ConfigError
from sppo_megatron.types import Group

_BINARY = ".parquet"


def write_groups(path: str | Path, groups: Iterable[Group]) -> None:
    """Writes the file as a whole or not at all: a reader never sees half of it, also after a crash.

    Raises ConfigError, and leaves what was there before, if a group breaks one of `read_groups`' rules.
    """
    with atomic_file(path) as file:
        if is_binary(path):
            _write_binary(path, file, groups)
            return
        for number, group in enumerate(groups, start=1):
            try:
                file.write(group_line(group))
            except ValueError as error:
                raise ConfigError(f"cannot write {path}: group {number}: {error}") from None


def _write_binary(path: str | Path, file: BinaryIO, groups: Iterable[Group]) -> None:
    from sppo_megatron.data.rollout_parquet import write_table

    try:
        write_table(file, groups)
    except ValueError as error:
        raise ConfigError(f"cannot write {path}: {error}") from None


def group_line(group: Group) -> bytes:
    """The group's line with its end, in UTF-8; half a surrogate pair is written in JSON's own notation.

    Raises ValueError if the group breaks one of `read_groups`' rules.
    """
    record = to_record(group)
    to_group(record, index=0)
    line = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
    return line.encode("utf-8", errors="backslashreplace")


def read_groups(path: str | Path, start: int = 0, stop: int | None = None) -> list[Group]:
    """Groups start..stop of the file in file order (all if stop is None); lines outside are not parsed.

    A group without prompt_index gets its 0-based place in the file as `Prompt.index`. Log-probs of tokens that
    loss_mask leaves out are read as 0.

    Raises ConfigError naming file, line and response: broken JSON (a torn last line too), a missing or empty
    prompt_token_ids, ids that are not integers in [0, 2³¹), a loss_mask of other values than 0 and 1 or not one per
    token, log-probs that are not finite or not one per token, a preference that is not a finite K×K matrix, a reward
    that is not a finite number, messages and extra of another shape. A response may have no tokens.
    """
    return list(iterate_groups(path, start, stop))


def summarize(path: str | Path) -> RolloutSummary:
    """Of a binary file as its footer says, whose groups are checked when they are read. JSONL is read and checked as
    `read_groups` does, one group in memory at a time."""
    if is_binary(path):
        from sppo_megatron.data.rollout_parquet import stored_summary

        return stored_summary(path)
    return summary_of(iterate_groups(path))


def iterate_groups(path: str | Path, start: int = 0, stop: int | None = None) -> Iterator[Group]:
    """As `read_groups`, one group in memory at a time; of a binary file, one block of groups."""
    if is_binary(path):
        from sppo_megatron.data.rollout_parquet import iterate_table

        yield from iterate_table(path, start, stop)
        return
    index = 0
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            if stop is not None and index >= stop:
                return
            if index >= start:
                yield _read(line, index, f"{path}, line {number}")
            index += 1


def iteration_files(folder: Path, iteration: int | None = None) -> list[Path]:
    """The files of a run's iterations in a folder, in their order; of one iteration if it is given.

    An iteration that is there in both forms was written as JSONL by an earlier version, and in binary since.
    """
    name = "iteration_*" if iteration is None else iteration_name(iteration)
    found: dict[str, Path] = {}
    for suffix in (".jsonl", _BINARY):
        found |= {path.stem: path for path in folder.glob(name + suffix)}
    return [found[stem] for stem in sorted(found)]


def iteration_name(iteration: int) -> str:
    """Of a run's file, without its ending."""
    return f"iteration_{iteration:06d}"


def is_binary(path: str | Path) -> bool:
    """By its name."""
    return Path(path).suffix == _BINARY


def _read(line: str, index: int, place: str) -> Group:
    try:
        return to_group(parse_object(line), index)
    except ValueError as error:
        torn = (
            ""
            if line.endswith("\n") or not str(error).startswith("not JSON")
            else ("; the line has no end, so the file was probably cut off while written")
        )
        raise ConfigError(f"{place}: {error}{torn}") from None
