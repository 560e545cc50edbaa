"""The rows of a run's metrics.jsonl, also of one that is still going on or that a kill has ended."""

import json
from pathlib import PurePath
from typing import Any, NamedTuple


class MetricRows(NamedTuple):
    """What a metrics.jsonl holds.

    Attributes:
      rows: in its order.
      broken: the numbers of lines that are no row, from 1.
      unfinished: whether something stands behind the last line's end: a row that is being written, or was cut off.
    """

    rows: list[dict[str, Any]]
    broken: list[int]
    unfinished: bool


def read_metric_rows(path: PurePath) -> MetricRows:
    """Reads a metrics.jsonl. path: a pathlib.Path, or what stands for one in an object store."""
    rows, broken = [], []
    *lines, rest = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            # A damaged line may hold bytes that are no text.
            row = json.loads(line.decode("utf-8", errors="replace"))
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            broken.append(number)
    return MetricRows(rows, broken, bool(rest))
