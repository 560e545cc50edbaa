"""The answer cache: one SQLite file, content-addressed, shared by any number of processes.

Every answer is committed by itself, so a killed process loses only the requests in flight. The first answer
to a request stays: a process that asked at the same time is given the stored one, and both label alike.
Failures are counted in their own table and never returned as answers.
"""

import json
import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path

from rlhf_jax.annotation.answers import Answer
from rlhf_jax.errors import UserError

_VERSION = 1
_COLUMNS = tuple(field.name for field in fields(Answer))
_LOGPROBS = _COLUMNS.index("top_logprobs")
_SCHEMA = f"""
    CREATE TABLE IF NOT EXISTS answers (
        request_hash TEXT PRIMARY KEY, provider TEXT NOT NULL, origin TEXT NOT NULL, requested TEXT NOT NULL,
        {", ".join(_COLUMNS)}
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS failures (request_hash TEXT NOT NULL, at INTEGER NOT NULL, reason TEXT);
    PRAGMA user_version = {_VERSION};
"""
_CHUNK = 500


class AnswerCache:
    """Answers by request hash, in the file `path` or, when it is None, in memory for this run only.

    Errors: UserError when the file cannot be opened or written, is no cache, or is of another version.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        try:
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            # Autocommit: each statement is a transaction. The timeout waits for other processes' writes.
            # One thread at a time uses it, but not always the one that opened it.
            self._db = sqlite3.connect(
                self.path or ":memory:", timeout=60.0, isolation_level=None, check_same_thread=False
            )
            self._open()
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"cache {self.path}: {error}; give a writable path to a new or existing cache"
            ) from None

    def _open(self) -> None:
        self._db.execute("PRAGMA busy_timeout = 60000")
        # One statement, so that no other process creates the tables between the two readings.
        query = "SELECT (SELECT user_version FROM pragma_user_version), (SELECT count(*) FROM sqlite_master)"
        version, tables = self._db.execute(query).fetchone()
        if version not in (0, _VERSION) or (version == 0 and tables):
            raise UserError(
                f"cache {self.path}: no answer cache of version {_VERSION} (user_version {version}); "
                "give another path"
            )
        # WAL without a sync per commit: safe against kill -9; a power cut may cost the last answers.
        _patiently(lambda: self._db.execute("PRAGMA journal_mode = WAL"))
        self._db.execute("PRAGMA synchronous = NORMAL")
        if version == 0:
            _patiently(lambda: self._db.executescript("BEGIN IMMEDIATE;" + _SCHEMA + "COMMIT;"))

    def __enter__(self) -> "AnswerCache":
        return self

    def __exit__(self, *exc: object) -> None:
        self._db.close()

    def get_many(self, keys: Iterable[str]) -> dict[str, Answer]:
        """The answers there are among `keys`."""
        keys, found = list(keys), {}
        for start in range(0, len(keys), _CHUNK):
            chunk = keys[start : start + _CHUNK]
            marks = ",".join("?" * len(chunk))
            query = f"SELECT request_hash, {', '.join(_COLUMNS)} FROM answers WHERE request_hash IN ({marks})"
            found.update((row[0], _answer(row[1:])) for row in self._db.execute(query, chunk))
        return found

    def get(self, key: str) -> Answer | None:
        """The answer to one request, None if there is none yet."""
        query = f"SELECT {', '.join(_COLUMNS)} FROM answers WHERE request_hash = ?"
        row = self._db.execute(query, (key,)).fetchone()
        return None if row is None else _answer(row)

    def put(self, key: str, answer: Answer, *, provider: str, origin: str, model: str) -> Answer:
        """Store an answer at once, unless there is one; give back the one that is stored."""
        values = [getattr(answer, name) for name in _COLUMNS]
        if answer.top_logprobs is not None:
            values[_LOGPROBS] = json.dumps(answer.top_logprobs)
        marks = ",".join("?" * (4 + len(values)))
        try:
            done = self._db.execute(
                f"INSERT OR IGNORE INTO answers VALUES ({marks})", (key, provider, origin, model, *values)
            )
        except sqlite3.OperationalError as error:
            raise UserError(f"cache {self.path}: {error}; free space or give another cache path") from None
        return answer if done.rowcount else (self.get(key) or answer)

    def note_failure(self, key: str, reason: str) -> None:
        """Record a failed attempt; it never counts as an answer."""
        self._db.execute("INSERT INTO failures VALUES (?, ?, ?)", (key, int(time.time() * 1000), reason))


def _answer(row: tuple) -> Answer:
    values = list(row)
    if values[_LOGPROBS] is not None:
        positions = json.loads(values[_LOGPROBS])
        values[_LOGPROBS] = tuple(tuple((token, lp) for token, lp in position) for position in positions)
    return Answer(*values)


def _patiently(action: Callable[[], object], seconds: float = 60.0) -> None:
    """Try again while another process holds the lock: switching the journal ignores the busy timeout."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            action()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
