"""The ledger of provider batches in a cache file: a batch is noted before it is sent, so that none is sent twice.

A batch is `intended` (its name and request hashes are kept; it may or may not have been sent), then `sent` with the
provider's id, then `done`, when its results are stored as answers and failures. The name is sent along where the
provider allows it, and each request carries its hash as custom_id.
"""

import functools
import json
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass

from rlhf_jax.annotation.answers.cache import AnswerCache
from rlhf_jax.errors import UserError

INTENDED, SENT, DONE = "intended", "sent", "done"


@dataclass(frozen=True)
class Entry:
    """One batch that is not done. `at`: when it was noted, seconds since 1970. batch_id: None until it is sent."""

    name: str
    provider: str
    origin: str
    model: str
    batch_id: str | None
    at: float
    keys: tuple[str, ...]

    @functools.cached_property
    def keys_set(self) -> frozenset[str]:
        """The keys as a set."""
        return frozenset(self.keys)


class Ledger:
    """Reads and writes the table of batches in a cache file."""

    def __init__(self, cache: AnswerCache) -> None:
        self._cache = cache

    def unfinished(self) -> list[Entry]:
        """Return the batches whose results are not stored yet, oldest first."""
        query = """SELECT name, provider, origin, requested, batch_id, at, keys FROM batches
                   WHERE state != ? ORDER BY at, name"""
        return [self._entry(row) for row in self._cache.rows(query, (DONE,))]

    def _entry(self, row: tuple) -> Entry:
        try:
            keys = json.loads(row[6])
            if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
                raise ValueError("no list of requests")
            return Entry(*row[:5], row[5] / 1000, tuple(keys))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"cache {self._cache.path}: batch {row[0]} ({row[4] or 'never sent'}) cannot be read "
                f"({type(error).__name__}); delete its row (table batches) or restore a copy of the file"
            ) from None

    def intend(self, provider: str, origin: str, model: str, keys: Iterable[str]) -> Entry | None:
        """Note a batch that is about to be sent; None when one of its requests is in an unfinished one already."""
        # The time is for people who look at the provider's list; the random part keeps two processes apart.
        name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"
        entry = Entry(name, provider, origin, model, None, time.time(), tuple(keys))
        values = (name, provider, origin, model, None, INTENDED, int(entry.at * 1000), json.dumps(entry.keys))
        # Lookup and insert are one transaction: other processes send batches from the same cache.
        with self._cache.writing():
            if not all(entry.keys_set.isdisjoint(other.keys) for other in self.unfinished()):
                return None
            self._cache.db.execute("INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
        return entry

    def id_of(self, name: str) -> str | None:
        """Return the provider's id of a batch, None until some process has noted it."""
        found = self._cache.rows("SELECT batch_id FROM batches WHERE name = ?", (name,))
        return found[0][0] if found else None

    def sent(self, entry: Entry, batch_id: str) -> Entry:
        """Note that the provider has the batch, under this id."""
        self._set(entry.name, "batch_id = ?, state = ?", batch_id, SENT)
        return Entry(entry.name, entry.provider, entry.origin, entry.model, batch_id, entry.at, entry.keys)

    def done(self, entry: Entry) -> None:
        """Close an entry whose results are stored, or that was never sent."""
        self._set(entry.name, "state = ?, keys = '[]'", DONE)

    def _set(self, name: str, what: str, *values: str) -> None:
        with self._cache.writing():
            self._cache.db.execute(f"UPDATE batches SET {what} WHERE name = ?", (*values, name))
