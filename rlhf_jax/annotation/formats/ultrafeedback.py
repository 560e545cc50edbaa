"""UltraFeedback: an instruction with several completions, each rated on several aspects and as a whole.

    {"instruction", "completions": [{"model", "response", "annotations": {aspect: {"Rating", "Rationale"}},
     "overall_score"}]}

The binarized form (prompt, chosen, rejected, score_chosen, score_rejected) is read as two ratings.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_jax.annotation.formats.rows_of import column, labelled, prompt_of_row, rated, write_lines
from rlhf_jax.annotation.parsing.contracts import RATING, is_number
from rlhf_jax.data.files.tables import columns_of, read_table, require_columns
from rlhf_jax.data.records.messages import is_messages
from rlhf_jax.errors import UserError


def read_ultrafeedback(path: str | Path) -> list[dict]:
    """Read one rated row per completion: `rating` is the overall score, `aspects` those with a number."""
    table = read_table(path)
    # The binarized dataset keeps two of the completions, with overall scores only.
    if "score_chosen" in columns_of(table):
        require_columns(table, ("prompt", "chosen", "rejected", "score_chosen", "score_rejected"), path)
        return [one for i, row in enumerate(table) for one in _binarized(row, f"{path}: row {i + 1}")]
    require_columns(table, ("instruction", "completions"), path)
    rows = []
    for i, row in enumerate(table):
        where = f"{path}: row {i + 1}"
        completions = row["completions"] if row["completions"] is not None else []
        if not isinstance(completions, list):
            raise UserError(f"{where}: completions: found {type(completions).__name__}; it must be a list")
        for k, one in enumerate(completions):
            here = f"{where}: completions[{k}]"
            if not isinstance(one, Mapping):
                raise UserError(f"{here}: found {type(one).__name__}; it must be an object with a response")
            output = column(one, "response", here)
            made = rated(column(row, "instruction", where), "", output, _number(one.get("overall_score")))
            aspects = [
                {"aspect": name, "rating": _number(said.get("Rating"))}
                for name, said in _mapping(one.get("annotations")).items()
                if isinstance(said, Mapping)
            ]
            known = [aspect for aspect in aspects if aspect["rating"] is not None]
            rows.append(made | {"generator": one.get("model"), "sample_id": k, "aspects": known or None})
    return rows


def _binarized(row: Mapping, where: str) -> list[dict]:
    made = []
    for k, side in enumerate(("chosen", "rejected")):
        said = row.get(side)
        if is_messages(said):
            # As chat messages each side holds the whole conversation: the last is the response.
            said = column(said[-1], "content", f"{where}: {side}: last message")
        else:
            said = column(row, side, where)
        score = _number(row.get(f"score_{side}"))
        made.append(rated(column(row, "prompt", where), "", said, score) | {"sample_id": k})
    return made


def _number(value: object) -> float | None:
    """A rating as UltraFeedback writes it: a number, or text that may be "N/A" (None here)."""
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    # float() takes "nan" and "inf", too.
    return number if is_number(number) else None


def _mapping(value: object) -> Mapping:
    return value if isinstance(value, Mapping) else {}


def write_ultrafeedback(path: str | Path, rows: Sequence[Mapping]) -> int:
    """Write rated rows as one object per prompt; return how many prompts. Unrated outputs are left out.

    Aspect ratings become texts, as UltraFeedback has them.
    """
    prompts: dict[str, list[dict]] = defaultdict(list)
    for row in labelled(rows, RATING, path):
        annotations = {
            one["aspect"]: {"Rating": f"{one['rating']:g}", "Rationale": ""}
            for one in row.get("aspects") or []
        }
        completion = {"model": row.get("generator"), "response": row["output"], "annotations": annotations}
        prompts[prompt_of_row(row)].append(completion | {"overall_score": row["rating"]})
    return write_lines(path, [{"instruction": text, "completions": list(c)} for text, c in prompts.items()])
