"""Records from real files of every kind: the same content, whatever holds it."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sppo_megatron.config import DataConfig
from sppo_megatron.data.prompts import load_prompts
from sppo_megatron.data.records import Split, read_records
from sppo_megatron.errors import ConfigError
from tests.unit.data.test_prompts import make_tokenizer, words

TRAIN, EVAL = Split(None, "train", "data.train_split"), Split(None, "test", "data.eval_split")
RECORDS = [{"prompt": "one two", "answer": "3", "n": 1}, {"prompt": "three", "answer": None, "n": 2}]
OTHERS = [{"prompt": "two", "answer": "1", "n": 3}]


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n")
    return path


def write_parquet(path: Path, records: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(records), path)
    return path


def saved(path: Path, **splits: list[dict]) -> Path:
    datasets.DatasetDict({name: datasets.Dataset.from_list(r) for name, r in splits.items()}).save_to_disk(str(path))
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def records_of(path: Path | str, split: Split = TRAIN) -> list[dict]:
    return [record for _, record in read_records(path, split)]


def test_every_kind_holds_the_same(tmp_path):
    whole = datasets.Dataset.from_list(RECORDS)
    whole.save_to_disk(str(tmp_path / "saved"))
    paths = [
        write_jsonl(tmp_path / "a.jsonl", RECORDS),
        write_parquet(tmp_path / "a.parquet", RECORDS),
        tmp_path / "saved",
        saved(tmp_path / "dict", train=RECORDS),
        saved(tmp_path / "dict-of-two", train=RECORDS, test=OTHERS),
        write_jsonl(tmp_path / "layout" / "train.jsonl", RECORDS).parent,
    ]
    assert [records_of(path) for path in paths] == [RECORDS] * len(paths)


def test_a_folder_of_parquet_files_is_read_in_the_order_of_names(tmp_path):
    write_parquet(tmp_path / "part-1.parquet", OTHERS)
    write_parquet(tmp_path / "part-0.parquet", RECORDS)
    places, records = zip(*read_records(tmp_path, EVAL), strict=True)
    assert list(records) == RECORDS + OTHERS
    assert places == ("row 1 of part-0.parquet", "row 2 of part-0.parquet", "row 1 of part-1.parquet")


def test_names_of_the_hub_keep_splits_apart(tmp_path):
    write_parquet(tmp_path / "test-00000-of-00001.parquet", OTHERS)
    write_parquet(tmp_path / "train-00000-of-00002.parquet", RECORDS[:1])
    write_parquet(tmp_path / "train-00001-of-00002.parquet", RECORDS[1:])
    assert records_of(tmp_path) == RECORDS
    assert records_of(tmp_path, EVAL) == OTHERS


@pytest.mark.parametrize("kind", ["saved", "layout", "parquet"])
def test_a_split_by_name_and_one_that_is_missing(tmp_path, kind):
    folder = tmp_path / kind
    if kind == "saved":
        saved(folder, train=RECORDS, validation=OTHERS)
    for name, records in {"train": RECORDS, "validation": OTHERS}.items():
        if kind == "layout":
            write_jsonl(folder / "data" / f"{name}.jsonl", records)
        if kind == "parquet":
            write_parquet(folder / f"{name}.parquet", records)
    assert records_of(folder, TRAIN._replace(name="validation")) == OTHERS
    with pytest.raises(ValueError, match=r"no split 'test': set data.eval_split to one of train, validation"):
        records_of(folder, EVAL)


def test_what_load_dataset_takes_by_name(tmp_path, monkeypatch):
    """The hub's own reading path; the data lie where the name says."""
    write_jsonl(tmp_path / "org" / "name" / "train.jsonl", RECORDS)
    write_jsonl(tmp_path / "org" / "name" / "test.jsonl", OTHERS)
    monkeypatch.chdir(tmp_path)
    assert records_of("org/name") == RECORDS
    assert records_of("org/name", EVAL) == OTHERS


def test_a_hub_id_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="nobody/nothing:main can't be loaded by Hugging Face datasets: "):
        records_of("nobody/nothing:main")


def test_a_split_of_what_has_none(tmp_path):
    for path in (write_jsonl(tmp_path / "a.jsonl", OTHERS), write_parquet(tmp_path / "a.parquet", OTHERS)):
        with pytest.raises(ValueError, match=r"has no splits, and data.train_split=validation: set it to null"):
            records_of(path, TRAIN._replace(name="validation"))


def test_a_missing_file(tmp_path):
    for name in ("a.jsonl", "a.parquet"):
        with pytest.raises(ConfigError):
            records_of(tmp_path / name)


def test_a_cut_parquet_file_is_named(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", RECORDS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"a.parquet can't be read as Parquet, after 0 rows"):
        records_of(path)


def test_prompts_from_rows_and_all_bad_rows_at_once(tmp_path):
    chat = [[{"role": "user", "content": "one"}], [], [{"role": "user", "content": "two"}], None]
    path = write_parquet(tmp_path / "a.parquet", [{"prompt": messages} for messages in chat])
    with pytest.raises(ValueError) as caught:
        load_prompts(path, make_tokenizer(), DataConfig(apply_chat_template=True))
    first, *problems = str(caught.value).split("\n  ")
    assert first == f"{path} has 2 bad rows:"
    assert [problem.partition(":")[0] for problem in problems] == ["row 2", "row 4"]
    good = write_parquet(tmp_path / "good.parquet", [{"prompt": chat[0]}, {"prompt": chat[2]}])
    prompts = load_prompts(good, make_tokenizer(), DataConfig(apply_chat_template=True))
    assert [words(prompt) for prompt in prompts] == ["<s> [user] one [assistant]", "<s> [user] two [assistant]"]
    assert [prompt.index for prompt in prompts] == [0, 1]


@pytest.mark.parametrize(("name", "package"), [("a.parquet", "pyarrow"), ("org/name", "datasets")])
def test_without_the_packages_the_message_says_what_to_install(tmp_path, name, package):
    write_parquet(tmp_path / "a.parquet", OTHERS)
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from sppo_megatron.data.records import Split, read_records\n"
        f"list(read_records({name!r}, Split(None, 'train', 'data.train_split')))"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert f'needs {package}: pip install "sppo-megatron[data]"' in done.stderr.splitlines()[-1]


LINES = "".join(json.dumps(record) + "\n" for record in OTHERS * 3)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + LINES.encode(),
        LINES.replace("\n", "\r\n").encode(),
        LINES.replace("\n", "\r").encode(),
        b"\n" + LINES.strip().encode(),
        json.dumps(OTHERS * 3).encode(),
        b"\xef\xbb\xbf\n " + json.dumps(OTHERS * 3, indent=1).encode(),
    ],
    ids=["bom", "crlf", "cr", "no end", "array", "indented array"],
)
def test_the_same_records_in_other_dress(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    assert records_of(path) == OTHERS * 3


def test_parquet_by_its_content(tmp_path):
    assert records_of(write_parquet(tmp_path / "train", RECORDS)) == RECORDS


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.csv", b"prompt,answer\n", "CSV"),
        ("a.jsonl", LINES.encode("utf-16"), "text in UTF-16"),
        ("a.jsonl", LINES.encode("utf-16-le"), "text in UTF-16"),
        ("a.jsonl", LINES.encode("utf-16-be"), "text in UTF-16"),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0), "compressed by gzip"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path, name, content, kind):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{name} is {kind}: give JSONL"):
        records_of(tmp_path / name)


def test_places_in_an_array_and_in_lines_of_other_encodings(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"prompt": "one"},\n 7]')
    (_, first), (place, second) = read_records(path, TRAIN)
    assert first == {"prompt": "one"} and place == "element 2" and str(second) == "is a JSON int, not an object"
    path.write_text('[{"prompt": "one"},\n {"prompt": "tw')
    with pytest.raises(ConfigError, match=r"a.json: not JSON .* at line 2, column 13"):
        records_of(path)
    path.write_bytes(b'[{"prompt":\n "caf\xe9"}]')
    with pytest.raises(ConfigError, match=r"a.json: byte 0xe9 at line 2, column 6 is not UTF-8"):
        records_of(path)
    path.write_bytes(LINES.encode() + b'{"prompt": "caf\xe9"}\n')
    assert str(records_of(path)[3]) == "byte 0xe9 at column 16 is not UTF-8: convert the file to UTF-8"
