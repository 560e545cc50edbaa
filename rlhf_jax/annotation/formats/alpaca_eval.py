"""AlpacaEval's annotations.json: one judgment per row, output_1 the baseline's, preference in [1, 2].

raw_completion is what the judge said: a chat choice with log-probabilities, the parsed JSON of a chain of
thought, or text. There is no input column: it is merged into the instruction.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_jax.annotation.contracts import PAIRWISE, is_number
from rlhf_jax.annotation.formats.rows_of import column, pair, preference_of, prompt_of, write_json
from rlhf_jax.annotation.label_checks import NothingToWriteError, is_labelled
from rlhf_jax.data.tables import read_table


def read(path: str | Path) -> list[dict]:
    """Judged pairs, those without a preference with the status parse_error. Prices and times are kept."""
    rows = []
    for i, row in enumerate(read_table(path)):
        where = f"{path}: row {i + 1}"
        outputs = (column(row, "output_1", where), column(row, "output_2", where))
        instruction, preference = (
            column(row, "instruction", where),
            preference_of(row.get("preference"), where),
        )
        made = row | pair(instruction, "", outputs, preference)
        made.pop("raw_completion", None)
        rows.append(made | _said(row.get("raw_completion")) | {"price_usd": row.get("price_per_example")})
    return rows


def _said(raw: object) -> dict:
    """What the judge answered, as an answer here would have it."""
    if not isinstance(raw, Mapping):
        return {"raw_text": raw if isinstance(raw, str) else None}
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
    tokens = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    first = tokens[0] if isinstance(tokens, list) and tokens else None
    tops = first.get("top_logprobs") if isinstance(first, Mapping) else None
    return [
        {"token": top["token"], "logprob": float(top["logprob"])}
        for top in (tops if isinstance(tops, list) else [])
        if isinstance(top, Mapping) and isinstance(top.get("token"), str) and is_number(top.get("logprob"))
    ]


def write(path: str | Path, rows: Sequence[Mapping]) -> int:
    """All judged pairs, failed ones with a null preference: AlpacaEval counts them. Raw answers as text."""
    pairs = [row for row in rows if row["kind"] == PAIRWISE]
    if not pairs:
        raise NothingToWriteError(f"{path}: none of {len(rows)} rows is a pair; this format needs them")
    return write_json(path, [_annotation(row) for row in pairs])


def _annotation(row: Mapping) -> dict:
    latency = row.get("latency_ms")
    made = {
        "instruction": prompt_of(row),
        "output_1": row["output_1"],
        "generator_1": row.get("generator_1"),
        "dataset": row.get("dataset"),
        "output_2": row["output_2"],
        "generator_2": row.get("generator_2"),
        "annotator": row.get("annotator"),
        "preference": row["preference"] if is_labelled(row) else None,
        "price_per_example": row.get("price_usd"),
        "time_per_example": row.get("time_per_example", None if latency is None else latency / 1e3),
        "raw_completion": row.get("raw_text"),
    }
    return {name: value for name, value in made.items() if name != "dataset" or value is not None}
