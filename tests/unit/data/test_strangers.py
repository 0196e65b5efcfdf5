"""Data of a stranger: pickles and scripts in the place of rollouts, arrays, caches and data sets are not run."""

from __future__ import annotations

import pickle
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from sppo_megatron.data.records import Split, read_records
from sppo_megatron.data.rollout_file import read_groups
from sppo_megatron.errors import ConfigError
from sppo_megatron.rewards.judge_cache import AnswerCache
from sppo_megatron.train.state import TrainerState
from tests.malicious import CODE, Touch


@pytest.fixture
def marker(tmp_path: Path):
    yield tmp_path / "marker"
    assert not (tmp_path / "marker").exists(), "a file was run"


def test_a_rollout_file(tmp_path: Path, marker: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    for content in (pickle.dumps(Touch(marker)), pickle.dumps(Touch(marker), protocol=0)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="line 1"):
            read_groups(path)


def test_the_arrays_of_a_checkpoint(tmp_path: Path, marker: Path) -> None:
    """An array of objects is a pickle, and so is a file without numpy's first bytes."""
    path = tmp_path / "old_log_probs.npy"
    np.save(path, np.array([Touch(marker)]), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        TrainerState().read_old_log_probs(tmp_path)
    path.write_bytes(pickle.dumps(Touch(marker)))
    with pytest.raises(ValueError, match="pickle"):
        TrainerState().read_old_log_probs(tmp_path)


def test_a_judges_cache(tmp_path: Path, marker: Path) -> None:
    """What is no probability is asked again."""
    cache = AnswerCache(tmp_path / "cache.sqlite")
    cache.put({"right": 0.25, "certain": 1.0})
    cache.close()
    connection = sqlite3.connect(tmp_path / "cache.sqlite")
    with connection:
        odd = {"pickle": pickle.dumps(Touch(marker)), "text": "0.5 or so", "null": None, "more": 1.5, "less": -0.1}
        connection.executemany("INSERT INTO answers VALUES (?, ?)", odd.items())
    connection.close()
    cache = AnswerCache(tmp_path / "cache.sqlite")
    assert cache.get(["right", "certain", *odd, "unknown"]) == {"right": 0.25, "certain": 1.0}
    cache.close()
    (tmp_path / "other.sqlite").write_bytes(pickle.dumps(Touch(marker)) * 100)
    with pytest.raises(ConfigError, match="can't be used"):
        AnswerCache(tmp_path / "other.sqlite")


def test_a_data_set_with_a_script(tmp_path: Path, marker: Path) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "prompts.py").write_text(CODE.format(str(marker)))
    (folder / "data.pkl").write_bytes(pickle.dumps(Touch(marker)))
    split = Split(None, "train", "data.train_split")
    with pytest.raises(ConfigError, match="scripts are no longer supported"):
        list(read_records(folder, split))
    (folder / "prompts.py").rename(folder / "other.py")
    (folder / "train.jsonl").write_text('{"prompt": "a"}\n')
    assert [record for _, record in read_records(folder, split)] == [{"prompt": "a"}]
