"""A judge that is asked again and again while a run trains: its server, its cache, its money, and what it will cost.

Answers are kept in the cache as they come, so a run that goes on after any end reads what it has paid for. A request
that brought no answer at all is written down beside the cache and not sent again: else the same iteration, done a
second time, might learn from another score. Needs no jax.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.annotation.calls.engine import Limits
from rlhf_jax.annotation.calls.rates import PerMinute
from rlhf_jax.annotation.costs.prices import price_of
from rlhf_jax.annotation.judges.requests import Judge
from rlhf_jax.annotation.judges.specs import PoolSpec, load_pool
from rlhf_jax.errors import UserError
from rlhf_jax.feedback.asked_rows import ANNOTATE, UNANSWERED, Judged, Question, judged_responses
from rlhf_jax.feedback.judging import describe_asking, judge_urls

# The fields of a page's group that say how its judge is asked.
_ASKING = ("max_usd", "max_concurrency", "cache", "requests_per_minute", "tokens_per_minute", "timeout_s")


def asking_of(group: Any) -> dict[str, Any]:
    """How the judge of a page's group (reward, win_rate) is asked, as plain values."""
    return {name: group[name] for name in _ASKING}


class RunningJudge:
    """Asks one pool during a run.

    asking: see `asking_of`. group: the group's name, for messages. seed: of the order in which outputs are shown, and
    the choice in a pool.
    """

    def __init__(self, file: str, asking: Mapping[str, Any], workdir: str, *, group: str, seed: int) -> None:
        self.pool = load_pool(file)
        self.kind = self.pool.judges[0].kind
        self._asking, self._group, self._seed = asking, group, seed
        self._cache = cache_path(asking, workdir, group)
        self._unanswered = _Unanswered(self._cache.with_suffix(".unanswered.jsonl"))
        # Of this start: what an earlier one spent stands in the cache, and is not spent again.
        self.spent_usd = 0.0
        self._open = contextlib.ExitStack()
        self._urls: dict[str, str] | None = None
        # The embedded judges' server goes with the run's objects, and with the process at the latest.
        self._end = weakref.finalize(self, self._open.close)

    @property
    def priced(self) -> bool:
        """Whether the price of every judge is known, so that answers have a cost."""
        return all(price is not None for price in self._prices())

    def ask(self, asked: Sequence[Question], count: int) -> Judged:
        """The judge's numbers for `count` responses, which these questions are about."""
        keys = [_key(question.row) for question in asked]
        known = [i for i, key in enumerate(keys) if key not in self._unanswered]
        # Rows of labels carry their question's number: an order of judging may make two of one question.
        rows = [asked[i].row | {"question": i} for i in known]
        labels, summary = self._annotate(rows) if rows else ([], {})
        self.spent_usd += summary.get("cost_usd") or 0.0
        self._unanswered.add({keys[row["question"]]: row for row in labels if row["status"] in UNANSWERED})
        # A question that was answered in one order only is left out whole, as it will be the next time.
        labels = [row for row in labels if keys[row["question"]] not in self._unanswered]
        left_out = [q.members for q, key in zip(asked, keys, strict=True) if key in self._unanswered]
        members = [asked[row["question"]].members for row in labels] + left_out
        return judged_responses(count, members, [*labels, *[None] * len(left_out)])

    def estimate(self, asked: Sequence[Question], times: float) -> str:
        """What the questions of a whole run would take, in words: `times` as much as these, with past answers."""
        told = self._annotate([question.row for question in asked], dry_run=True)[1]
        whole = {
            name: None if told[name] is None else told[name] * times
            for name in ("calls", "tokens_in", "tokens_out", "cost_usd", "max_cost_usd", "seconds")
        }
        past = sum(part["past_answers"] for part in told["by_model"])
        return f"{describe_asking(whole)}, by {past:,} answers in {self._cache}"

    def _annotate(self, rows: list[dict], *, dry_run: bool = False) -> tuple[list[dict], dict]:
        if self._urls is None:
            self._urls = self._open.enter_context(judge_urls(self.pool))
        asking = self._asking
        try:
            done = ANNOTATE[self.kind](
                rows,
                self.pool,
                seed=self._seed,
                cache_path=self._cache,
                max_concurrency=asking["max_concurrency"],
                timeout_s=asking["timeout_s"],
                limits=Limits(
                    max_usd=asking["max_usd"],
                    spent_usd=self.spent_usd,
                    per_minute=PerMinute(asking["requests_per_minute"], asking["tokens_per_minute"]),
                ),
                base_urls=self._urls,
                dry_run=dry_run,
            )
        except UserError as error:
            said = str(error)
            dot = "." if said.startswith(("max_usd:", "cache:")) else ": "
            raise UserError(f"{self._group}{dot}{said}") from None
        return done.rows, done.summary

    def _prices(self) -> list[Any]:
        return [
            price_of(Judge(spec, self._urls or {"local": "http://127.0.0.1"})) for spec in self.pool.judges
        ]


class _Unanswered:
    """The questions that brought no answer, a line each in a file beside the cache."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        # A process that was killed while it wrote leaves half a line, which says nothing.
        self._keys = {found["question"] for found in map(_parsed, lines) if found}

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def add(self, found: Mapping[str, Mapping]) -> None:
        if not found:
            return
        with self._path.open("a") as file:
            for key, row in found.items():
                told = {"question": key, "status": row["status"], "detail": row["status_detail"]}
                file.write(json.dumps(told) + "\n")
        self._keys |= found.keys()
        print(
            f"judge: {len(found)} questions brought no answer and are not asked again: {self._path}",
            flush=True,
        )


def cache_path(asking: Mapping[str, Any], workdir: str, group: str) -> Path:
    """Where a run keeps its judge's answers; UserError where the workdir lies in an object store."""
    if not asking["cache"] and "://" in workdir:
        raise UserError(
            f"{group}.cache: {workdir} is no folder of a disk, which the answers' file needs; give a file's path"
        )
    return Path(asking["cache"] or Path(workdir) / "answers.sqlite")


def _key(row: Mapping) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode("utf-8", "replace")).hexdigest()[:32]


def _parsed(line: str) -> dict:
    try:
        return json.loads(line)
    except ValueError:
        return {}


def judges_of(file: str) -> list[tuple[str, float]]:
    """(id, weight) of each judge of a file; the id is a hash of all in its files that can change an answer."""
    pool: PoolSpec = load_pool(file)
    return [(judge.judge_id, weight) for judge, weight in zip(pool.judges, pool.weights, strict=True)]
