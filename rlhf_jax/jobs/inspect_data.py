"""A look at training data before it is trained on: what is trained, what is left out, how long rows are."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.data import inspection
from rlhf_jax.data.batches import bucket
from rlhf_jax.data.chat import CHAT
from rlhf_jax.data.handling import handling_of
from rlhf_jax.data.left_out import RowError
from rlhf_jax.data.messages import parse_messages
from rlhf_jax.data.packing import pack
from rlhf_jax.data.records import describe, read_instructions, read_pairs, read_prompts
from rlhf_jax.data.tables import read_rows
from rlhf_jax.data.tokenization import (
    NO_LIMIT,
    Pairs,
    Prompts,
    Sequences,
    encode_pairs,
    encode_prompts,
    encode_sft,
)
from rlhf_jax.data.tokenizer_files import load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import hints, inputs, wanted
from rlhf_jax.jobs.rows import describe as describe_packs
from rlhf_jax.models import gguf_files
from rlhf_jax.parallel import startup
from rlhf_jax.training.workdir import one_writer, prepare

READERS = {"instruction": read_instructions, "pair": read_pairs, "prompt": read_prompts}
ENCODERS = {"instruction": encode_sft, "pair": encode_pairs, "prompt": encode_prompts}


class Lengths(NamedTuple):
    """Tokens: of every prompt, of every response (none of prompt records), and of every row, a pair's longer side."""

    prompt: np.ndarray
    response: np.ndarray
    total: np.ndarray


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Prints the report, and writes it to WORKDIR/inspection.txt."""
    ranges.check(config.to_dict())
    wanted.check(config, workdir)
    prepare(workdir, config.to_dict())
    lines = list(_report(config))
    if startup.is_main():
        coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        print(_join(lines, inspection.COLOUR if coloured else inspection.PLAIN), flush=True)
        path = Path(workdir) / "inspection.txt"
        path.write_text(_join(lines, inspection.PLAIN) + "\n", encoding="utf-8")


class Example(NamedTuple):
    """A line that shows tokens; how they are marked depends on where it is shown."""

    ids: np.ndarray
    trained: np.ndarray
    tokenizer: Any


def _join(lines: list[str | Example], marks: tuple[str, str]) -> str:
    return "\n".join(x if isinstance(x, str) else inspection.marked(*x, marks) for x in lines)


def _report(config: ConfigDict) -> Iterator[str | Example]:
    data = config.data
    tokenizer = load_tokenizer(gguf_files.as_folder(config.tokenizer), made_by=hints.FARM)
    kind = _kind(data) if data.kind == "auto" else data.kind
    rows, skipped = READERS[kind](data.path, made_by=hints.FARM, chat=data.template == CHAT)
    yield f"{data.path}: {len(rows)} {kind} records; {describe(skipped)}"
    rng = np.random.default_rng(config.seed)
    if 0 < data.rows < len(rows):
        rows = [rows[i] for i in sorted(rng.choice(len(rows), data.rows, replace=False))]
        yield f"looking at {len(rows)} of them"
    found, dropped = ENCODERS[kind](rows, tokenizer, data.template, NO_LIMIT, handling_of(data))[:2]
    if dropped:
        yield f"template {data.template}: {len(found)} rows; {describe(dropped)}"
    lengths = _lengths(found)
    yield _within(kind, rows, tokenizer, data, config.seed)
    shown = rng.choice(len(found), min(config.examples, len(found)), replace=False)
    for i in sorted(shown.tolist()):
        yield from _example(found, i, tokenizer)
    for name, n in zip(Lengths._fields, lengths, strict=True):
        if len(n):
            yield f"\n{name} tokens: {inspection.summary(n)}"
            yield from inspection.histogram(n, config.bins)
    over = inspection.share_over(lengths.total, data.max_length)
    yield f"\nlonger than {data.max_length} tokens: {over:.2%} of {len(lengths.total)} rows"


def _within(kind: str, rows: list[dict], tokenizer: Any, data: ConfigDict, seed: int) -> str:
    """What a trainer with this max_length would say of the rows."""
    try:
        found, counts = ENCODERS[kind](rows, tokenizer, data.template, data.max_length, handling_of(data))[:2]
    except UserError as nothing_left:
        return str(nothing_left)
    said = f"max_length {data.max_length}: {len(found)} rows; {describe(counts)}"
    if kind == "prompt":
        return said
    length = bucket(data.max_length * (2 if kind == "pair" else 1), 8)
    return f"{said}\n{describe_packs(pack(found, length, seed))}"


def _example(found: Prompts | Pairs, i: int, tokenizer: Any) -> Iterator[str | Example]:
    sides = zip(inputs.SIDES, found, strict=True) if isinstance(found, Pairs) else [("", found)]
    for name, side in sides:
        trained = _trained(side)[side.offsets[i] : side.offsets[i + 1]]
        title = f"row {i + 1}{' ' if name else ''}{name}: {len(trained)} tokens"
        yield f"\n--- {title}, {trained.sum()} of them trained ---"
        yield Example(side[i], trained, tokenizer)


def _trained(found: Prompts) -> np.ndarray:
    """Which tokens are trained, for all tokens at once."""
    if not isinstance(found, Sequences):
        return np.zeros(len(found.tokens), bool)
    if found.trained is not None:
        return found.trained
    at = np.arange(len(found.tokens)) - np.repeat(found.offsets[:-1], found.lengths)
    return at >= np.repeat(found.prompt_lengths, found.lengths)


def _lengths(found: Prompts | Pairs) -> Lengths:
    if isinstance(found, Pairs):
        one, other = (_lengths(side) for side in found)
        response = np.concatenate([one.response, other.response])
        return Lengths(one.prompt, response, np.maximum(one.total, other.total))
    if not isinstance(found, Sequences):
        return Lengths(found.lengths, np.zeros(0, np.int32), found.lengths)
    response = np.add.reduceat(_trained(found).astype(np.int32), found.offsets[:-1])
    return Lengths(found.lengths - response, response, found.lengths)


def _kind(data: ConfigDict) -> str:
    """What the records are, by their columns."""
    rows = read_rows(data.path, made_by=hints.FARM)
    found = set(rows[0]).union(*rows[1:])
    if {"chosen", "rejected", "output_1", "output_2"} & found:
        return "pair"
    if {"output", "completion", "response"} & found:
        return "instruction"
    for column in {"messages", "conversations"} & found:
        if any(_answered(row.get(column)) for row in rows):
            return "instruction"
    return "prompt"


def _answered(messages: Any) -> bool:
    try:
        return parse_messages(messages)[-1]["role"] == "assistant"
    except RowError:
        return False
