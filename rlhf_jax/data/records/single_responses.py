"""Takes labelled pairs apart: the responses of one side, each once, as demonstrations."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
_PROMPT = ("instruction", "input", "prompt", "messages")


def responses_of_side(pairs: Sequence[Row], side: str) -> tuple[list[Row], Counter[str]]:
    """Takes one side of the pairs that `read_pairs` returns: (rows with `output`, counts of rows left out).

    side: chosen or rejected. Several pairs of a prompt may have the same response on this side; it is taken once.
    """
    rows: dict[tuple[str, ...], Row] = {}
    for pair in pairs:
        row = {name: pair[name] for name in _PROMPT if name in pair} | {"output": pair[side]}
        row |= {name: pair[f"{side}_{name}"] for name in ("ended",) if f"{side}_{name}" in pair}
        row |= {f"output_{name}": pair[f"{side}_{name}"] for name in ("fields",) if f"{side}_{name}" in pair}
        # With its further fields: a message with other tool calls is another response.
        rows.setdefault(tuple(repr(item) for item in sorted(row.items())), row)
    repeated = Counter({f"{side} in another pair, too": len(pairs) - len(rows)})
    # The plus drops what was counted 0 times.
    return list(rows.values()), +repeated
