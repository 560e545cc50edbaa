"""The answer cache: one SQLite file, keyed by request hash, shared by any number of processes.

Every answer is committed by itself, so a killed process loses only the requests in flight. The first answer
to a request stays: a process that asked at the same time is given the stored one, and both label alike.
Failures are counted in their own table and never returned as answers. The table `batches` is `ledger`'s.
"""

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from rlhf_jax.annotation.answers.answers import Answer, TopLogprobs
from rlhf_jax.errors import UserError

VERSION = 2
_COLUMNS = tuple(field.name for field in fields(Answer))
_LOGPROBS = _COLUMNS.index("top_logprobs")
# What every stored answer has besides: whom it is from, and how long the question was (bytes of the body).
WHERE = ("provider", "origin", "requested", "body_bytes")
ALL_COLUMNS = ("request_hash", *WHERE, *_COLUMNS)
# WITHOUT ROWID keeps rows in the order of their hashes: lookups and the sorted export need no second index.
_SCHEMA = f"""
    CREATE TABLE IF NOT EXISTS answers (
        request_hash TEXT PRIMARY KEY, provider TEXT NOT NULL, origin TEXT NOT NULL, requested TEXT NOT NULL,
        body_bytes INTEGER, {", ".join(_COLUMNS)}
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS failures (request_hash TEXT NOT NULL, at INTEGER NOT NULL, reason TEXT, usd REAL);
    CREATE TABLE IF NOT EXISTS batches (
        name TEXT PRIMARY KEY, provider TEXT NOT NULL, origin TEXT NOT NULL, requested TEXT NOT NULL,
        batch_id TEXT, state TEXT NOT NULL, at INTEGER NOT NULL, keys TEXT NOT NULL
    );
    PRAGMA user_version = {VERSION};
"""
# Version 1 knew no batches, no prompt-cache writes and no length of a question.
_FROM_1 = f"""
    ALTER TABLE answers ADD COLUMN body_bytes INTEGER;
    ALTER TABLE answers ADD COLUMN tokens_cache_write;
    ALTER TABLE answers ADD COLUMN transport DEFAULT 'online';
    ALTER TABLE answers ADD COLUMN batch_id;
    ALTER TABLE failures ADD COLUMN usd REAL;
    {_SCHEMA}
"""
# SQLite before 3.32 takes at most 999 variables in a statement.
_CHUNK = 500
# How long a write waits for another process, reporting every second: the answer in hand is paid for.
_LONGEST_LOCK_S, _TELL_S = 600.0, 1.0
# What to do about what the database says; the first is for all else.
_MENDING = (
    ((), "give a writable path to a new or existing cache"),
    (
        ("malformed", "not a database", "decode", "corrupt", "no such column", "no such table", "constraint"),
        "it is damaged or no answer cache: restore a copy, or move it away and run again",
    ),
    (("locked", "busy"), "another process has held it for minutes; wait until that is done, or stop it"),
    (("disk is full", "disk I/O"), "free space or give another cache path; the answers until now are kept"),
    (("readonly",), "it may only be read; give a writable path, or a copy of it"),
)


class AnswerCache:
    """Answers by request hash, in the file `path` or, when it is None, in memory for this run only.

    Errors: UserError when the file cannot be opened or written, is no cache, or is of another version.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self.told: Callable[[str], None] = lambda words: None  # Hears what is waited for.
        # Without this an address such as gs://bucket/cache would become a local folder named "gs:".
        if "://" in str(path):
            raise UserError(
                f"cache {path}: is no path of a local file, which an answer cache must be; give one"
            )
        try:
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            # Autocommit: each statement is a transaction. The timeout waits for other processes' writes.
            # One thread at a time uses it, but not always the one that opened it.
            self.db = sqlite3.connect(
                self.path or ":memory:", timeout=60.0, isolation_level=None, check_same_thread=False
            )
            self._open()
        except (sqlite3.Error, OSError, ValueError) as error:  # ValueError: a path no system has.
            raise self._error(error) from None

    def _open(self) -> None:
        self.db.execute("PRAGMA busy_timeout = 60000")
        version, tables = self._look()
        # user_version is 0 in every database that never set it: one with tables belongs to another program.
        if version not in (0, 1, VERSION) or (version == 0 and tables):
            raise UserError(
                f"cache {self.path}: no answer cache of version {VERSION} (user_version {version}); "
                "give another path"
            )
        # WAL without a sync per commit: safe against kill -9; a power cut may cost the last answers.
        _patiently(lambda: self.db.execute("PRAGMA journal_mode = WAL"))
        self.db.execute("PRAGMA synchronous = NORMAL")
        if version != VERSION:
            _patiently(self._create)

    def _look(self) -> tuple[int, int]:
        """Return the file's version and the number of its tables, read in one statement."""
        query = "SELECT (SELECT user_version FROM pragma_user_version), (SELECT count(*) FROM sqlite_master)"
        return self.db.execute(query).fetchone()

    def _create(self) -> None:
        """Create the tables of a new file, or those that an older one lacks, unless another process was faster."""
        # The write lock is taken before looking: of two processes that open a new file, one makes the tables.
        self.db.execute("BEGIN IMMEDIATE")
        try:
            version, _ = self._look()
            script = _FROM_1 if version == 1 else _SCHEMA if version == 0 else ""
            # One by one: sqlite3's executescript would commit this transaction first.
            for statement in script.split(";"):
                self.db.execute(statement)
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    def __enter__(self) -> "AnswerCache":
        return self

    def __exit__(self, *exc: object) -> None:
        self.db.close()

    def _error(self, error: Exception) -> UserError:
        """The error for what the database reports, in one line: which file, what, and what to do."""
        said = " ".join(str(error).split())
        mend = next((mend for words, mend in _MENDING if any(word in said for word in words)), _MENDING[0][1])
        return UserError(f"cache {self.path or '(in memory)'}: {said}; {mend}")

    def rows(self, query: str, values: Sequence = ()) -> list[tuple]:
        """Return the rows that a query finds. Errors: UserError when the file cannot be read."""
        try:
            return self.db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise self._error(error) from None

    def chunks(self, query: str, size: int) -> Iterator[list[tuple]]:
        """Yield the rows that a query finds, `size` at a time. Errors as `rows`."""
        try:
            found = self.db.execute(query)
            while chunk := found.fetchmany(size):
                yield chunk
        except sqlite3.Error as error:
            raise self._error(error) from None

    def get_many(self, keys: Iterable[str]) -> dict[str, Answer]:
        """Return the cached answers by key; keys without an answer are left out."""
        columns = f"request_hash, {', '.join(_COLUMNS)}"
        return {row[0]: self._answer(*row) for row in self._among(columns, "answers", keys)}

    def failed_before(self, keys: Iterable[str]) -> set[str]:
        """Return those of `keys` for which an attempt has failed before, in this run or an earlier one."""
        return {key for (key,) in self._among("DISTINCT request_hash", "failures", keys)}

    def _among(self, columns: str, table: str, keys: Iterable[str]) -> Iterator[tuple]:
        keys = list(keys)
        for start in range(0, len(keys), _CHUNK):
            chunk = keys[start : start + _CHUNK]
            marks = ",".join("?" * len(chunk))
            yield from self.rows(f"SELECT {columns} FROM {table} WHERE request_hash IN ({marks})", chunk)

    def get(self, key: str) -> Answer | None:
        """Return the answer to one request, None if there is none yet."""
        return self.get_many([key]).get(key)

    def has_answer_of(self, provider: str, origin: str, model: str) -> bool:
        """Return whether the cache holds any answer of a model."""
        query = "SELECT 1 FROM answers WHERE provider = ? AND origin = ? AND requested = ? LIMIT 1"
        return bool(self.rows(query, (provider, origin, model)))

    def count(self) -> int:
        """Return the number of answers."""
        return self.rows("SELECT count(*) FROM answers")[0][0]

    def _answer(self, key: str, *row: object) -> Answer:
        # SQLite columns have no fixed type: a damaged or edited row may hold anything.
        values = dict(zip(_COLUMNS, row, strict=True))
        with contextlib.suppress(*_NO_LOGPROBS):
            values["top_logprobs"] = _logprobs(values["top_logprobs"])
        if wrong := wrong_column(values):
            raise UserError(
                f"cache {self.path}: the answer {key[:16]} cannot be read ({wrong}); delete its row "
                "(table answers, column request_hash) to have it asked again, or restore a copy of the file"
            )
        return Answer(**values)

    def put(
        self,
        key: str,
        answer: Answer,
        *,
        provider: str,
        origin: str,
        model: str,
        body_bytes: int | None = None,
    ) -> Answer:
        """Store an answer unless the request has one already; return the one that is stored."""
        done = self.insert([(key, provider, origin, model, body_bytes, *_values(answer))])
        return answer if done else (self.get(key) or answer)

    def insert(self, rows: Iterable[tuple]) -> int:
        """Store rows of ALL_COLUMNS whose requests have no answer yet, in one commit; how many those were.

        Errors: UserError when the file cannot be written.
        """
        names, marks = ", ".join(ALL_COLUMNS), ",".join("?" * len(ALL_COLUMNS))
        # OR IGNORE keeps the first answer to a request; the change counter tells how many rows were new.
        before = self.db.total_changes
        with self.writing():
            self.db.executemany(f"INSERT OR IGNORE INTO answers ({names}) VALUES ({marks})", rows)
        return self.db.total_changes - before

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Make the block one transaction: all of it or nothing. Errors: UserError when the file cannot be written."""
        try:
            self._begin()
            try:
                yield
            except BaseException:
                # SQLite itself rolls back when the disk is full; a second ROLLBACK would be an error.
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise
            self.db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._error(error) from None

    def _begin(self) -> None:
        """Begin a write transaction, reporting every second while another process holds the lock."""
        deadline = time.monotonic() + _LONGEST_LOCK_S
        # SQLite's own busy handler waits in silence; with a short timeout this loop can report the wait.
        self.db.execute(f"PRAGMA busy_timeout = {int(_TELL_S * 1000)}")
        try:
            while True:
                try:
                    self.db.execute("BEGIN IMMEDIATE")
                    return
                except sqlite3.OperationalError as error:
                    if "locked" not in str(error) or time.monotonic() > deadline:
                        raise
                    self.told(f"another process that writes to the cache {self.path}")
        finally:
            self.db.execute("PRAGMA busy_timeout = 60000")

    def note_failure(self, key: str, reason: str, usd: float | None = None) -> None:
        """Record a failed attempt and what it cost, None when nobody knows; it never counts as an answer."""
        values = (key, int(time.time() * 1000), reason, usd)
        with self.writing():
            self.db.execute(
                "INSERT INTO failures (request_hash, at, reason, usd) VALUES (?, ?, ?, ?)", values
            )


# The largest value of a column of numbers: labels keep counts in 32 bits, and the year 9999 is the last.
_MOST = {name: 2**31 - 1 for name in _COLUMNS if name.startswith("tokens_")}
_MOST |= {"body_bytes": 2**62, "n_attempts": 10_000, "created_at": 253_402_300_799_999, "latency_ms": 1e15}
_NO_LOGPROBS = (ValueError, TypeError, RecursionError, OverflowError)
_NEEDED = ("request_hash", "provider", "origin", "requested", "text", "n_attempts", "created_at")


def wrong_column(row: Mapping[str, object]) -> str:
    """Name the first column of a stored answer whose value cannot be one, "" for none.

    A null stands for what the provider did not tell, except where an answer is none without the value.
    """
    return next((name for name, value in row.items() if not _fits(name, value)), "")


def _fits(name: str, value: object) -> bool:
    if value is None:
        return name not in _NEEDED
    if name in _MOST:
        kinds = int | float if name == "latency_ms" else int
        return isinstance(value, kinds) and not isinstance(value, bool) and 0 <= value <= _MOST[name]
    if name == "top_logprobs":
        # Either as it is stored, or parsed already.
        with contextlib.suppress(*_NO_LOGPROBS):
            return isinstance(value, tuple) or _logprobs(value) is not None
        return False
    return isinstance(value, str)


def _values(answer: Answer) -> list:
    values = [getattr(answer, name) for name in _COLUMNS]
    if answer.top_logprobs is not None:
        values[_LOGPROBS] = json.dumps(answer.top_logprobs)
    return values


def _logprobs(stored: str | None) -> TopLogprobs | None:
    if stored is None:
        return None
    return tuple(tuple((str(token), float(lp)) for token, lp in position) for position in json.loads(stored))


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
