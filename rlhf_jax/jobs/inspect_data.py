"""Shows training data before it is trained on: which tokens are trained, what is left out, how long rows are."""

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
from rlhf_jax.data.batches import Pairs, Prompts, Sequences, bucket, pack
from rlhf_jax.data.chat.chat_encoding import CHAT
from rlhf_jax.data.files.tables import read_rows
from rlhf_jax.data.records.left_out import RowError, has_content
from rlhf_jax.data.records.messages import parse_messages
from rlhf_jax.data.records.records import counts_text, read_instructions, read_pairs, read_prompts
from rlhf_jax.data.records.row_parts import CONVERSATIONS, RESPONSES
from rlhf_jax.data.templates import handling_of
from rlhf_jax.data.tokenization import NO_LIMIT, encode_pairs, encode_prompts, encode_sft
from rlhf_jax.data.tokens.tokenizer_files import load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.models.huggingface import import_folder
from rlhf_jax.training.checkpoints import lock
from rlhf_jax.training.checkpoints.workdir import write_json
from rlhf_jax.training.run import encoded_rows, missing_inputs
from rlhf_jax.training.run.encoded_rows import packing_said
from rlhf_jax.training.run.missing_inputs import TABLE, TOKENIZER, Needs, Read, made_by

READERS = {"instruction": read_instructions, "pair": read_pairs, "prompt": read_prompts}
ENCODERS = {"instruction": encode_sft, "pair": encode_pairs, "prompt": encode_prompts}


class Lengths(NamedTuple):
    """Numbers of tokens: of every prompt, of every response (none of prompts alone), of every row (its longer side)."""

    prompt: np.ndarray
    response: np.ndarray
    total: np.ndarray


NEEDS = Needs(
    reads=(
        Read("data.path", TABLE, made_by("make_data", "data")),
        Read("tokenizer", TOKENIZER, made_by("make_data", "data")),
    )
)


def run(config: ConfigDict, workdir: str) -> None:
    """Prints the report, and writes it to WORKDIR/inspection.txt."""
    ranges.check_ranges(config.to_dict())
    missing_inputs.check_needs(NEEDS, config, workdir)
    with lock.holding(workdir):
        write_json(Path(workdir) / "config.json", config.to_dict())
        lines = list(_report(config))
        # NO_COLOR is the convention of no-color.org: where it is set and not empty, programs use no colours.
        coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        print(_join(lines, inspection.COLOUR if coloured else inspection.PLAIN), flush=True)
        path = Path(workdir) / "inspection.txt"
        path.write_text(_join(lines, inspection.PLAIN) + "\n", encoding="utf-8")


class ShownRow(NamedTuple):
    """A row of tokens to show: in colours on a terminal, with brackets in the file."""

    ids: np.ndarray
    trained: np.ndarray
    tokenizer: Any


def _join(lines: list[str | ShownRow], marks: tuple[str, str]) -> str:
    return "\n".join(x if isinstance(x, str) else inspection.marked(*x, marks) for x in lines)


def _report(config: ConfigDict) -> Iterator[str | ShownRow]:
    data = config.data
    tokenizer = load_tokenizer(
        import_folder.gguf_importer().as_folder(config.tokenizer), made_by=made_by("make_data", "data")
    )
    kind = _kind(data) if data.kind == "auto" else data.kind
    rows, skipped = READERS[kind](data.path, made_by=made_by("make_data", "data"), chat=data.template == CHAT)
    yield f"{data.path}: {len(rows)} {kind} records; {counts_text(skipped)}"
    rng = np.random.default_rng(config.seed)
    if 0 < data.rows < len(rows):
        # Sorted, so that the rows stay in the order of the file.
        rows = [rows[i] for i in sorted(rng.choice(len(rows), data.rows, replace=False))]
        yield f"looking at {len(rows)} of them"
    # Without a limit, so that the histogram also shows the rows that max_length would cut or leave out.
    # `encode_prompts` returns a third value, which is not needed.
    found, dropped = ENCODERS[kind](rows, tokenizer, data.template, NO_LIMIT, handling_of(data))[:2]
    if dropped:
        yield f"template {data.template}: {len(found)} rows; {counts_text(dropped)}"
    lengths = _lengths(found)
    yield _within(kind, rows, tokenizer, data, config.seed)
    shown = rng.choice(len(found), min(config.examples, len(found)), replace=False)
    for i in sorted(shown.tolist()):
        yield from _example(found, i, tokenizer)
    for name, n in zip(Lengths._fields, lengths, strict=True):
        if len(n):
            yield f"\n{name} tokens: {inspection.inspection_summary(n)}"
            yield from inspection.histogram(n, config.bins)
    over = inspection.share_over(lengths.total, data.max_length)
    yield f"\nlonger than {data.max_length} tokens: {over:.2%} of {len(lengths.total)} rows"


def _within(kind: str, rows: list[dict], tokenizer: Any, data: ConfigDict, seed: int) -> str:
    """Returns what a trainer with this max_length would print about the rows."""
    try:
        found, counts = ENCODERS[kind](rows, tokenizer, data.template, data.max_length, handling_of(data))[:2]
    # A report about a limit that leaves no row should show the rest all the same.
    except UserError as nothing_left:
        return str(nothing_left)
    said = f"max_length {data.max_length}: {len(found)} rows; {counts_text(counts)}"
    if kind == "prompt":
        return said
    # The row length that trainers take with packing, where both sides of a pair share a row.
    length = bucket(data.max_length * (2 if kind == "pair" else 1), 8)
    return f"{said}\n{packing_said(pack(found, length, seed))}"


def _example(found: Prompts | Pairs, i: int, tokenizer: Any) -> Iterator[str | ShownRow]:
    sides = zip(encoded_rows.SIDES, found, strict=True) if isinstance(found, Pairs) else [("", found)]
    for name, side in sides:
        trained = _trained(side)[side.offsets[i] : side.offsets[i + 1]]
        title = f"row {i + 1}{' ' if name else ''}{name}: {len(trained)} tokens"
        yield f"\n--- {title}, {trained.sum()} of them trained ---"
        yield ShownRow(side[i], trained, tokenizer)


def _trained(found: Prompts) -> np.ndarray:
    """A mask over all tokens of all rows: is it trained?"""
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
    # Counted by the mask: in conversations of several turns, tokens of the user follow the first trained one.
    response = np.add.reduceat(_trained(found).astype(np.int32), found.offsets[:-1])
    return Lengths(found.lengths - response, response, found.lengths)


def _kind(data: ConfigDict) -> str:
    """Finds the kind of the records by their columns; one without any content says nothing."""
    rows = read_rows(data.path, made_by=made_by("make_data", "data"))
    found = {name for row in rows for name, value in row.items() if has_content(value)}
    # Pairs first, then demonstrations: each of them has the columns of the kinds after it, too.
    if {"chosen", "rejected", "output_1", "output_2"} & found:
        return "pair"
    if set(RESPONSES) & found:
        return "instruction"
    # Conversations may be either; one that ends with the assistant decides for demonstrations.
    for column in set(CONVERSATIONS) & found:
        if any(_answered(row.get(column)) for row in rows):
            return "instruction"
    return "prompt"


def _answered(messages: Any) -> bool:
    try:
        return parse_messages(messages)[-1]["role"] == "assistant"
    except RowError:
        return False
