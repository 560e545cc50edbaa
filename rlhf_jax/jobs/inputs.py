"""Reading what trainers train on: records to token arrays, with every row that is left out counted aloud."""

from __future__ import annotations

from collections import Counter
from datetime import date
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from rlhf_jax.data.batches import bucket, pad
from rlhf_jax.data.chat import CHAT
from rlhf_jax.data.chat_templates import asks_for_the_date
from rlhf_jax.data.handling import handling_of
from rlhf_jax.data.records import describe, read_instructions, read_pairs, read_prompts
from rlhf_jax.data.splits import local_path
from rlhf_jax.data.templates import render
from rlhf_jax.data.tokenization import SIDES, Pairs, Sequences, encode_pairs, encode_prompts, encode_sft
from rlhf_jax.errors import UserError
from rlhf_jax.parallel import startup
from rlhf_jax.training.storage import at, write_text

_TOKEN_MAKERS = ("tokenizers", "transformers", "jinja2")


class Split(NamedTuple):
    """Encoded rows for training and for evaluation, and the records behind the latter."""

    train: Any
    eval: Any
    eval_rows: list[dict]
    train_rows: tuple[dict, ...] = ()  # behind the former, for methods that read them


def instructions(data: ConfigDict, tokenizer: Any, seed: int, made_by: str) -> Split:
    """Demonstrations as Sequences."""
    train, held = _two_files(read_instructions, data, seed, made_by)
    return Split(
        _encoded(encode_sft, train, tokenizer, data, "train"),
        _encoded(encode_sft, held, tokenizer, data, "eval"),
        held,
    )


def pairs(data: ConfigDict, tokenizer: Any, seed: int, made_by: str) -> Split:
    """Labelled pairs as Pairs; no prompt is on both sides of the split."""
    train, held = _two_files(read_pairs, data, seed, made_by)
    return Split(
        _encoded(encode_pairs, train, tokenizer, data, "train"),
        _encoded(encode_pairs, held, tokenizer, data, "eval"),
        held,
    )


def prompts(data: ConfigDict, tokenizer: Any, seed: int, made_by: str) -> Split:
    """Prompts; the evaluation rows are those that were kept, in their order."""
    train, held = _two_files(read_prompts, data, seed, made_by)
    encoded = []
    for rows, name in ((train, "train"), (held, "eval")):
        found, dropped, kept = encode_prompts(
            rows, tokenizer, data.template, data.max_prompt_length, handling_of(data)
        )
        say(f"data.{name}: {len(found)} prompts", dropped)
        encoded.append((found, [rows[i] for i in kept]))
    return Split(encoded[0][0], encoded[1][0], encoded[1][1], tuple(encoded[0][1]))


def response_lengths(sequences: Sequences) -> np.ndarray:
    """Tokens of each response, its end included [n]."""
    return sequences.lengths - sequences.prompt_lengths


def array_sizes(*sets: Sequences) -> tuple[int, int]:
    """(T, R): one row length and one response length that hold every sequence, so that steps compile once."""
    longest = max(int(s.lengths.max()) for s in sets)
    return bucket(longest, 8), max(int(response_lengths(s).max()) for s in sets)


def pad_pairs(
    found: Pairs, index_B: np.ndarray, T: int, pad_id: int, rows: slice | np.ndarray
) -> dict[str, np.ndarray]:
    """Both sides of the chosen pairs: {chosen,rejected}_{tokens,lengths,prompt_lengths}."""
    sides = {side: pad(getattr(found, side), index_B, T, pad_id, rows) for side in SIDES}
    return {f"{side}_{name}": x for side, arrays in sides.items() for name, x in arrays.items()}


def hold_out(rows: list[dict], eval_rows: int, seed: int) -> tuple[list[dict], list[dict], Counter[str]]:
    """(train, eval, counts of rows left out): no prompt on both sides.

    Whole prompts are set aside until they hold eval_rows rows and are a twentieth of all prompts (or eval_rows
    of them): a hundred rows of one prompt would say little. eval_rows of these rows are drawn.
    """
    by_prompt: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        by_prompt.setdefault(render(row, "alpaca"), []).append(i)
    rng = np.random.default_rng(seed)
    groups = list(by_prompt.values())
    wanted_rows, wanted_prompts = min(eval_rows, len(rows) // 2), min(eval_rows, len(groups) // 20)
    held: list[int] = []
    for prompts, k in enumerate(rng.permutation(len(groups))):
        if len(held) >= wanted_rows and prompts >= wanted_prompts:
            break
        held += groups[k]
    if len(held) == len(rows):
        raise UserError(
            f"data.eval_rows: {eval_rows} rows cannot be held out of {len(by_prompt)} prompt; set data.eval"
        )
    kept = draw(sorted(held), eval_rows, rng)
    left_out = Counter({"other row of a held-out prompt": len(held) - len(kept)})
    aside = set(held)
    return [row for i, row in enumerate(rows) if i not in aside], [rows[i] for i in kept], +left_out


def digests(*paths: str) -> dict[str, str]:
    """Hashes of the inputs of a run, and the versions of what makes tokens of them, so that a resumed run notices."""
    from rlhf_jax.training.workdir import digest

    found = {path: digest(local_path(path)) for path in paths if path and local_path(path).exists()}
    return found | {name: version(name) for name in _TOKEN_MAKERS}


def keep_date(config: ConfigDict, workdir: str, tokenizer: Any) -> None:
    """Sets data.date to the day on which the run began, where a chat template asks for it and none is set.

    It is kept in WORKDIR/date.txt: a run that goes on next week writes the same tokens. Every process calls this.
    """
    if config.data.date or config.data.template != CHAT or not asks_for_the_date(tokenizer):
        return
    path = at(workdir) / "date.txt"
    if startup.is_main() and not path.exists():
        write_text(path, f"{date.today().isoformat()}\n")
    startup.barrier("date")
    config.data.date = path.read_text().strip()
    if startup.is_main():
        print(
            f"data.date: the chat template is told {config.data.date}, in this run and when it goes on",
            flush=True,
        )


def _two_files(read: Any, data: ConfigDict, seed: int, made_by: str) -> tuple[list[dict], list[dict]]:
    chat = data.template == CHAT
    rows, skipped = read(data.train, made_by=made_by, chat=chat)
    say(f"data.train: {len(rows)} rows read from {data.train}", skipped)
    if data.eval:
        held, skipped = read(data.eval, made_by=made_by, chat=chat)
        say(f"data.eval: {len(held)} rows read from {data.eval}", skipped)
        held = draw(held, data.eval_rows, np.random.default_rng(seed))
    else:
        rows, held, skipped = hold_out(rows, data.eval_rows, seed)
        say(f"data.eval: {len(held)} rows held out", skipped)
    return draw(rows, data.train_rows or len(rows), np.random.default_rng(seed)), held


def draw(rows: list, count: int, rng: np.random.Generator) -> list:
    """`count` of the rows, or all when there are not more, in their order."""
    if len(rows) <= count:
        return rows
    return [rows[i] for i in sorted(rng.choice(len(rows), count, replace=False))]


def _encoded(encode: Any, rows: list[dict], tokenizer: Any, data: ConfigDict, name: str) -> Any:
    found, dropped = encode(rows, tokenizer, data.template, data.max_length, handling_of(data))
    say(f"data.{name}: {len(found)} rows", dropped)
    return found


def say(text: str, skipped: Counter) -> None:
    """One line of the main process: what was read, what was left out of it and why."""
    if startup.is_main():
        print(f"{text}; {describe(skipped)}", flush=True)
