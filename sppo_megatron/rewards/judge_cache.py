"""The judge's answers on disk: what was asked once, in this run or another, isn't asked again."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from sppo_megatron.errors import ConfigError

logger = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 30.0  # several ranks write to one file


class AnswerCache:
    """path: an SQLite file, made if it is missing. Threads and processes may share it.

    What goes wrong with the file later costs an answer's place in it, never the run.
    Raises ConfigError if the file can't be opened as a cache.
    """

    def __init__(self, path: str | Path) -> None:
        self._lock = threading.Lock()
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, check_same_thread=False)
            with self._connection:
                self._connection.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, first_wins REAL)")
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(
                f"reward.judge.cache_path={path} can't be used ({error}): name another file, or null for none"
            ) from error

    def get(self, keys: Iterable[str]) -> dict[str, float]:
        """P(first wins) of the keys that are there with a probability."""
        found: dict[str, float] = {}
        with self._lock:
            try:
                for key in keys:
                    row = self._connection.execute("SELECT first_wins FROM answers WHERE key = ?", (key,)).fetchone()
                    if row is not None and isinstance(row[0], float) and 0.0 <= row[0] <= 1.0:
                        found[key] = row[0]
            except sqlite3.Error as error:
                logger.warning("the judge's cache can't be read: %s", error)
        return found

    def put(self, answers: Mapping[str, float]) -> None:
        """On disk when it returns: one commit for all of them, which costs milliseconds."""
        with self._lock:
            try:
                with self._connection:
                    self._connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", answers.items())
            except sqlite3.Error as error:
                logger.warning("the judge's cache can't be written: %s", error)

    def close(self) -> None:
        with self._lock:
            self._connection.close()
