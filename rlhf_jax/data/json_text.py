"""The text of JSON and JSONL files -> rows, with the line of whatever cannot be read."""

import json
from pathlib import Path
from typing import Any

from rlhf_jax.errors import UserError

_DIGITS = 4000  # Of an integer; Python refuses to read longer ones, and no column we use has any.


def decode(data: bytes, path: Path) -> str:
    """Bytes as text: UTF-8, or UTF-16 where its mark stands in front. Raises UserError with the line that is not."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError as e:
            raise UserError(f"{path}: cannot be read (broken UTF-16, {e.reason}); save it as UTF-8") from e
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        raise UserError(
            f"{path}: cannot be read (line {line} is not UTF-8, {e.reason}); save it as UTF-8"
        ) from e


def parse_json(text: str, path: Path) -> list[Any]:
    """A list of objects, or several objects one after the other: a JSONL file by another name."""
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as e:
        if e.msg == "Extra data":
            return parse_lines(text, path)
        raise UserError(f"{path}: broken JSON at line {e.lineno} ({e.msg})") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: broken JSON ({_reason(e)})") from e
    if not isinstance(value, list):
        raise UserError(f"{path}: holds one {type(value).__name__}; a table is a list of objects")
    return value


def parse_lines(text: str, path: Path) -> list[Any]:
    """One value a line; empty lines are skipped."""
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(_DECODER.decode(line))
        except (ValueError, RecursionError) as e:
            raise UserError(f"{path}: broken JSON at line {number} ({_reason(e)})") from e
    return rows


def _reason(e: Exception) -> str:
    if isinstance(e, RecursionError):
        return "lists or objects are nested too deeply"
    return e.msg if isinstance(e, json.JSONDecodeError) else str(e)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; a key that comes twice with two values would lose one of them."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if repr(found[key]) != repr(value):
                raise ValueError(f"the key {key!r} twice in one object, with two values")
    return found


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < _DIGITS else float(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)
