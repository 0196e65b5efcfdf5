from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sppo_megatron.rewards.judge_cache import AnswerCache

WRITER = """
import sys
from sppo_megatron.rewards.judge_cache import AnswerCache
cache = AnswerCache(sys.argv[1])
for i in range(50):
    cache.put({f"{sys.argv[2]}-{i}": i / 50})
"""


def test_answers_come_back_bitwise_and_the_last_one_counts(tmp_path):
    cache = AnswerCache(tmp_path / "new" / "cache")
    cache.put({"a": 0.1 + 0.2, "b": 1.0})
    cache.put({"b": 0.25})
    cache.close()
    assert AnswerCache(tmp_path / "new" / "cache").get(["a", "b", "c"]) == {"a": 0.1 + 0.2, "b": 0.25}


def test_threads_and_processes_share_it(tmp_path):
    path = str(tmp_path / "cache")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, name], env=environment) for name in ("one", "two")
    ]
    cache = AnswerCache(path)
    threads = [threading.Thread(target=cache.put, args=({f"thread-{i}": 0.5},)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    names = [*(f"{name}-{i}" for name in ("one", "two") for i in range(50)), *(f"thread-{i}" for i in range(20))]
    assert len(cache.get(names)) == 120


def test_what_is_no_cache_is_refused(tmp_path):
    (tmp_path / "text").write_text("this is no database, and long enough to be seen as such" * 10)
    with pytest.raises(ValueError, match=r"reward\.judge\.cache_path=.*text"):
        AnswerCache(tmp_path / "text")


def test_a_file_that_breaks_later_costs_no_run(tmp_path, caplog):
    cache = AnswerCache(tmp_path / "cache")
    with sqlite3.connect(tmp_path / "cache") as other:
        other.execute("DROP TABLE answers")
    cache.put({"a": 0.5})
    assert cache.get(["a"]) == {}
    assert "can't be written" in caplog.text and "can't be read" in caplog.text
