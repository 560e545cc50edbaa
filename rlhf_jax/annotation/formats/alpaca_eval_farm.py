"""AlpacaEval's annotations.json and AlpacaFarm's preferences: JSON lists of pairs, preference in [1, 2].

AlpacaEval has one judgment per row, output_1 the baseline's; raw_completion is what the judge said: a chat choice with
log-probabilities, the parsed JSON of a chain of thought, or text. There is no input column: it is merged into the
instruction. AlpacaFarm has instruction, input, output_1, output_2, preference and annotator.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_jax.annotation.formats.rows_of import (
    column,
    labelled,
    pair,
    preference_of,
    prompt_of_row,
    write_json_rows,
)
from rlhf_jax.annotation.labels.judgment_rows import NothingToWriteError, is_labelled
from rlhf_jax.annotation.parsing.contracts import PAIRWISE, is_number
from rlhf_jax.data.files.tables import read_table


def read_alpaca_eval(path: str | Path) -> list[dict]:
    """Read judged pairs; those without a preference get the status parse_error. Prices and times are kept."""
    rows = []
    for i, row in enumerate(read_table(path)):
        where = f"{path}: row {i + 1}"
        outputs = (column(row, "output_1", where), column(row, "output_2", where))
        instruction, preference = (
            column(row, "instruction", where),
            preference_of(row.get("preference"), where),
        )
        # The row's own columns stay, but for those that a labelled pair has a place for.
        made = row | pair(instruction, "", outputs, preference)
        made.pop("raw_completion", None)
        rows.append(made | _said(row.get("raw_completion")) | {"price_usd": row.get("price_per_example")})
    return rows


def _said(raw: object) -> dict:
    """What the judge answered, in the columns of labels.parquet."""
    if not isinstance(raw, Mapping):
        return {"raw_text": raw if isinstance(raw, str) else None}
    # Without a message it is the parsed JSON of a chain-of-thought judge.
    if "message" not in raw:
        said = raw.get("concise_explanation")
        return {
            "raw_text": json.dumps(raw, ensure_ascii=False),
            "explanation": said if isinstance(said, str) else None,
        }
    message = raw["message"] if isinstance(raw["message"], Mapping) else {}
    made = {"raw_text": message.get("content"), "finish_reason": raw.get("finish_reason")}
    if tops := _first_tops(raw.get("logprobs")):
        made["top_logprobs"] = tops
    return made


def _first_tops(logprobs: object) -> list[dict]:
    """The alternatives of the first token; those without a token and a number are left out."""
    # A weighted judge answers with one token, which is its verdict.
    tokens = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    first = tokens[0] if isinstance(tokens, list) and tokens else None
    tops = first.get("top_logprobs") if isinstance(first, Mapping) else None
    return [
        {"token": top["token"], "logprob": float(top["logprob"])}
        for top in (tops if isinstance(tops, list) else [])
        if isinstance(top, Mapping) and isinstance(top.get("token"), str) and is_number(top.get("logprob"))
    ]


def write_alpaca_eval(path: str | Path, rows: Sequence[Mapping]) -> int:
    """Write all judged pairs, failed ones with a null preference since AlpacaEval counts them; raw answers as text."""
    pairs = [row for row in rows if row["kind"] == PAIRWISE]
    if not pairs:
        raise NothingToWriteError(f"{path}: none of {len(rows)} rows is a pair; this format needs them")
    return write_json_rows(path, [_annotation(row) for row in pairs])


def _annotation(row: Mapping) -> dict:
    latency = row.get("latency_ms")
    made = {
        "instruction": prompt_of_row(row),
        "output_1": row["output_1"],
        "generator_1": row.get("generator_1"),
        "dataset": row.get("dataset"),
        "output_2": row["output_2"],
        "generator_2": row.get("generator_2"),
        "annotator": row.get("annotator"),
        "preference": row["preference"] if is_labelled(row) else None,
        # AlpacaEval's names for cost and latency; its time is in seconds and amortised over the chunk.
        "price_per_example": row.get("price_usd"),
        "time_per_example": row.get("time_per_example", None if latency is None else latency / 1e3),
        "raw_completion": row.get("raw_text"),
    }
    # AlpacaEval writes `dataset` only where the outputs had one.
    return {name: value for name, value in made.items() if name != "dataset" or value is not None}


def read_alpaca_farm(path: str | Path) -> list[dict]:
    """Read labelled pairs. A draw may be 0 (older files) or 1.5; further columns are kept."""
    rows = []
    for i, row in enumerate(read_table(path)):
        where = f"{path}: row {i + 1}"
        outputs = (column(row, "output_1", where), column(row, "output_2", where))
        prompt = (column(row, "instruction", where), column(row, "input", where, default=""))
        rows.append(row | pair(*prompt, outputs, preference_of(row.get("preference"), where)))
    return rows


def write_alpaca_farm(path: str | Path, rows: Sequence[Mapping]) -> int:
    """Write labelled pairs, whole preferences as integers as AlpacaFarm does; other rows are left out."""
    return write_json_rows(path, [_farm_row(row) for row in labelled(rows, PAIRWISE, path)])


def _farm_row(row: Mapping) -> dict:
    preference = row["preference"]
    whole = int(preference) if preference == int(preference) else preference
    kept = {name: row[name] for name in ("instruction", "input", "output_1", "output_2")}
    # Not AlpacaFarm's: whether each output ended by itself, which our trainers need to place the end token.
    kept |= {name: row[name] for name in ("ended_1", "ended_2") if row.get(name) is not None}
    return kept | {"annotator": row.get("annotator"), "preference": whole}
