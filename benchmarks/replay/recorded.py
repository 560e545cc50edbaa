"""Recorded AlpacaEval annotations: files, the form each judge answered in, and its answer to a question.

A results folder holds MODEL/model_outputs.json and MODEL/ANNOTATOR/annotations.json, each perhaps gzipped.
Annotators differ in what they recorded of the raw answer:

    weighted   a completion with the log-probabilities of its first token; the names are mostly m and M
    ordered    the arguments of a function call: "ordered_models" with ranks, perhaps an explanation
    ranking    the text of a list of {'model': name, 'rank': rank}
    none       only the preference: the answer is written anew, as that judge must have given it
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_jax.data.files.tables import read_table
from rlhf_jax.errors import UserError

WEIGHTED, ORDERED, RANKING = "weighted", "ordered", "ranking"
_DRAWS = (0, 1.5)


@dataclass(frozen=True)
class Recorded:
    """What one annotator said about one model: rows as published, and how they were answered.

    names: how the annotator called the first and the second output shown. usd_per_token: one price for input
    and output, as AlpacaEval counts.
    """

    model: str
    annotator: str
    rows: list[dict]
    outputs: list[dict]
    form: str
    names: tuple[str, str]
    usd_per_token: float


def read_results(folder: Path) -> list[Recorded]:
    """Every annotations file below `folder`, by model and annotator. Raises UserError when there is none."""
    paths = sorted(p for p in folder.glob("*/*/annotations.json*") if p.suffix in (".json", ".gz"))
    if not paths:
        raise UserError(f"results: no MODEL/ANNOTATOR/annotations.json[.gz] in {folder}; name another folder")
    return [_read(path) for path in paths]


def preference(row: Mapping) -> float | None:
    """The published preference: legacy 0 is a draw, -1 and NaN are missing."""
    value = row.get("preference")
    if value is None or math.isnan(value) or value == -1:
        return None
    return 1.5 if value in _DRAWS else float(value)


def answer_of(recorded: Recorded, row: Mapping, switched: bool) -> dict:
    """The judge's answer to a row: text, perhaps first-token `logprobs` {token: log-probability}, `tokens`.

    switched: whether output_2 was asked about first. A raw answer that was recorded is given as it is, so a
    question in another order than the recorded one ends in another preference.
    """
    raw, price = row.get("raw_completion"), row.get("price_per_example") or 0.0
    answer: dict = {"tokens": round(price / recorded.usd_per_token)}
    if _is_weighted(raw):
        top = raw["logprobs"]["content"][0]["top_logprobs"]
        return answer | {"text": raw["text"], "logprobs": {one["token"]: one["logprob"] for one in top}}
    if isinstance(raw, dict) and "ordered_models" in raw:
        return answer | {"text": json.dumps(raw)}
    if isinstance(raw, str) and _listed(raw):
        return answer | {"text": raw}
    return answer | _written_anew(recorded, preference(row), switched)


def _written_anew(recorded: Recorded, label: float | None, switched: bool) -> dict:
    """An answer that means `label`; one that means nothing where there is none."""
    if label is None:
        return {"text": "I cannot say."}
    shown = 3 - label if switched else label  # 1: the first output shown is better
    if recorded.form == WEIGHTED:
        p = {recorded.names[0]: 2 - shown, recorded.names[1]: shown - 1}
        return {"text": max(p, key=p.get), "logprobs": {k: math.log(v) for k, v in p.items() if v > 0}}
    best = recorded.names if shown < 1.5 else recorded.names[::-1]
    ranked = [{"model": name, "rank": rank} for rank, name in enumerate(best, 1)]
    return {"text": json.dumps({"ordered_models": ranked}) if recorded.form == ORDERED else repr(ranked)}


def _read(path: Path) -> Recorded:
    rows = read_table(path)
    model = path.parents[1]
    files = sorted(model.glob("model_outputs.json*"))
    outputs = read_table(files[0]) if files else []
    form, names = _form(rows)
    return Recorded(model.name, path.parent.name, rows, outputs, form, names, _usd_per_token(rows))


def _form(rows: Sequence[Mapping]) -> tuple[str, tuple[str, str]]:
    raws = [row["raw_completion"] for row in rows if row.get("raw_completion")]
    for raw in raws:
        if _is_weighted(raw):
            # The likeliest first tokens over the file are the two names.
            tokens = [one["logprobs"]["content"][0]["token"] for one in raws if _is_weighted(one)]
            common = sorted(set(tokens), key=tokens.count)[-2:]
            return WEIGHTED, _names(common)
        if isinstance(raw, dict) and "ordered_models" in raw:
            return ORDERED, _names([one["model"] for one in raw["ordered_models"]])
        if isinstance(raw, str) and (ranked := _listed(raw)):
            return RANKING, _names([one["model"] for one in ranked])
    graded = any(label not in (None, 1.0, 1.5, 2.0) for label in map(preference, rows))
    return (WEIGHTED if graded else RANKING), ("m", "M")


def _names(found: Sequence[str]) -> tuple[str, str]:
    """First and second: m before M, model_1 before model_2, a before b."""
    names = sorted(set(found), key=str.swapcase)
    return (names[0], names[1]) if len(names) == 2 else ("m", "M")


def _is_weighted(raw: object) -> bool:
    return isinstance(raw, dict) and bool((raw.get("logprobs") or {}).get("content"))


def _listed(raw: str) -> list[dict]:
    """The ranked entries of a completion that is a list of dictionaries, [] for any other."""
    try:
        value = ast.literal_eval(raw.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    entries = isinstance(value, list) and all(isinstance(one, dict) and "model" in one for one in value)
    return value if entries else []


def _usd_per_token(rows: Sequence[Mapping]) -> float:
    """Dollars a token: price over tokens where both were recorded, else the largest rate that fits all prices."""
    for row in rows:
        raw = row.get("raw_completion")
        if isinstance(raw, dict) and raw.get("total_tokens") and row.get("price_per_example"):
            return round(row["price_per_example"] / raw["total_tokens"], 12)
    prices = [row["price_per_example"] for row in rows if row.get("price_per_example")]
    rates = (3e-5, 1e-5, 2e-6, 1e-6, 5e-7, 2e-7, 1e-7, 1e-8, 1e-9)
    fits = (rate for rate in rates if all(abs(p / rate - round(p / rate)) < 1e-6 for p in prices))
    return next(fits, 1e-10)
