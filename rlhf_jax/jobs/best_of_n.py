"""Best of n: keeps the best of the samples of each prompt, and tells what the best of k would be worth for every k.

What decides is the score that `score` gave each of the samples of `generate`. Equal scores are decided by the order of
the samples: the first is taken. A response that occurs several times among the samples of a prompt is kept once.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.data.files.tables import (
    columns_of,
    read_rows,
    require_columns,
    whole_file,
    write_parquet,
)
from rlhf_jax.data.records.left_out import counts_text
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.best_of_k import BestOf, best_of_table
from rlhf_jax.training.checkpoints import lock
from rlhf_jax.training.checkpoints.workdir import one_writer, write_json
from rlhf_jax.training.run import missing_inputs
from rlhf_jax.training.run.missing_inputs import TABLE, Needs, Read, made_by

Row = dict[str, Any]
NEEDS = Needs(reads=(Read("scored", TABLE, made_by("score", "scores")),))
ranges.own_rows("best_of_n", name=ranges.TEXT, top_k=ranges.COUNT, per_prompt=ranges.COUNT)
_PROMPT = ("instruction", "input", "prompt", "messages")


class Candidate(NamedTuple):
    """A scored response: its text, its score, whether it ended by itself (None: not known), and its place."""

    text: str
    score: float
    ended: bool | None
    place: int


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Writes outputs.parquet (as generate does), rows.parquet (demonstrations), best_of_k.csv and best_of_n.json."""
    ranges.check_ranges(config.to_dict())
    missing_inputs.check_needs(NEEDS, config, workdir)
    with lock.holding(workdir):
        folder, counts = Path(workdir), Counter()
        write_json(folder / "config.json", config.to_dict())
        rows = read_rows(config.scored, made_by=made_by("score", "scores"))
        require_columns(rows, ("responses", "scores"), config.scored)
        if not set(columns_of(rows)) & set(_PROMPT):
            require_columns(rows, ("prompt",), config.scored)
        samples = [candidates(row, counts) for row in rows]
        found = [(row, some) for row, some in zip(rows, samples, strict=True) if some]
        counts["prompt without a scored response"] = len(rows) - len(found)
        if not found:
            raise UserError(
                f"scored: no response of {config.scored} has a score ({counts_text(+counts)}); see its column reasons"
            )
        kept = [(row, ranked(some, counts)[: config.top_k]) for row, some in found]
        counts["fewer different responses than top_k (row kept)"] = sum(
            len(best) < config.top_k for _, best in kept
        )
        write_parquet(folder / "outputs.parquet", [_output(row, best, config) for row, best in kept])
        demonstrations = capped(kept, config.per_prompt, counts)
        write_parquet(folder / "rows.parquet", demonstrations)
        table = best_of_table([[one.score for one in some] for _, some in found])
        _write_table(folder / "best_of_k.csv", table)
        written = {"prompts": len(found), "rows": len(demonstrations)}
        # A standard error that is not known is null: JSON has no NaN.
        listed = [{name: _number(x) for name, x in row._asdict().items()} for row in table]
        write_json(folder / "best_of_n.json", written | {"counts": dict(+counts), "best_of": listed})
        print(_shown(table), flush=True)
        print(
            f"wrote {folder / 'outputs.parquet'}: {len(kept)} prompts; {folder / 'rows.parquet'}: "
            f"{len(demonstrations)} rows; {counts_text(+counts)}",
            flush=True,
        )


def candidates(row: Mapping[str, Any], counts: Counter[str]) -> list[Candidate]:
    """The responses of a row that have a score, in the order in which they were sampled; counts the others."""
    texts, scores = (_listed(row.get(name)) for name in ("responses", "scores"))
    if len(texts) != len(scores):
        raise UserError(
            f"scored: a row has {len(texts)} responses and {len(scores)} scores; write the file with configs/score.py"
        )
    marks = _listed(row.get("ended"))
    # A single mark, or a list of another length, does not say which response it speaks of.
    marks = marks if len(marks) == len(texts) else [None] * len(texts)
    found = []
    for place, (text, score, ended) in enumerate(zip(texts, scores, marks, strict=True)):
        if isinstance(text, str) and isinstance(score, int | float) and math.isfinite(score):
            found.append(Candidate(text, float(score), ended, place))
        else:
            counts["response without a score"] += 1
    return found


def ranked(found: Sequence[Candidate], counts: Counter[str]) -> list[Candidate]:
    """The different responses, best first; of equal scores the first sample comes first."""
    order = sorted(found, key=lambda one: (-one.score, one.place))
    # Of a response that was sampled several times the dict keeps the first, which is its best.
    different: dict[str, Candidate] = {}
    for one in order:
        different.setdefault(one.text, one)
    counts["repeated sample of a prompt"] += len(found) - len(different)
    best = list(different.values())
    counts["samples of a prompt all the same (row kept)"] += len(found) > 1 and len(best) == 1
    counts["best score shared by different responses, the first taken (row kept)"] += (
        len(best) > 1 and best[0].score == best[1].score
    )
    return best


def capped(
    kept: Sequence[tuple[Mapping[str, Any], Sequence[Candidate]]], most: int, counts: Counter[str]
) -> list[Row]:
    """Demonstrations of what was kept: at most so many of a prompt, the best, also where several rows ask it."""
    by_prompt: dict[str, list[tuple[Row, Candidate]]] = {}
    for row, best in kept:
        prompt = {name: row[name] for name in _PROMPT if row.get(name) is not None}
        key = json.dumps(prompt, sort_keys=True, default=str)
        by_prompt.setdefault(key, []).extend((prompt, one) for one in best)
    rows = []
    for group in by_prompt.values():
        different: dict[str, tuple[Row, Candidate]] = {}
        # Sorting is stable: of equal scores the first row of the file comes first.
        for prompt, one in sorted(group, key=lambda pair: -pair[1].score):
            different.setdefault(one.text, (prompt, one))
        counts["repeated response of a prompt in several rows"] += len(group) - len(different)
        counts["row above per_prompt"] += max(len(different) - most, 0)
        for prompt, one in list(different.values())[:most]:
            rows.append(prompt | _said([one], single=True) | {"score": one.score})
    return rows


def _output(row: Mapping[str, Any], best: Sequence[Candidate], config: ConfigDict) -> Row:
    prompt = {name: row[name] for name in _PROMPT if name in row}
    return prompt | _said(best, single=config.top_k == 1) | {"generator": config.name}


def _said(best: Sequence[Candidate], *, single: bool) -> Row:
    """The columns of responses, as `generate` writes them: one text, or lists."""
    known = all(one.ended is not None for one in best)
    if single:
        return {"output": best[0].text} | ({"ended": best[0].ended} if known else {})
    return {"outputs": [one.text for one in best]} | ({"ended": [one.ended for one in best]} if known else {})


def _listed(value: Any) -> list[Any]:
    """A list, be it written as JSON, as a column of several kinds is in parquet; none where there is no list."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = json.loads(value)
    return list(value) if isinstance(value, list | tuple) else []


def _write_table(path: Path, table: Sequence[BestOf]) -> None:
    with whole_file(path) as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(BestOf._fields)
        writer.writerows(["" if _number(x) is None else x for x in row] for row in table)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _shown(table: Sequence[BestOf]) -> str:
    """The table's rows of k = 1, 2, 4, ... and the last."""
    lines = ["best of   score          KL at most (nats)   prompts"]
    for row in table:
        if row.k & (row.k - 1) == 0 or row.k == len(table):
            lines.append(f"{row.k:7d}   {row.score:+.4f} ± {row.se:.4f}   {row.kl:17.3f}   {row.prompts:7d}")
    return "\n".join(lines)
