"""Reads the rows that trainers train on: records to token arrays, to the rows of batches, packed or not.

Every row that is left out is counted, and the counts are printed with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from datetime import date
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from rlhf_jax.data.batches import Packs, Pairs, Sequences, bucket, end_to_end, pack, pad, pad_packs
from rlhf_jax.data.candidate_arrays import Candidates, check_ranked, encode_candidates, pad_candidates
from rlhf_jax.data.chat.chat_encoding import CHAT
from rlhf_jax.data.chat.chat_templates import asks_for_the_date
from rlhf_jax.data.files.splits import local_path
from rlhf_jax.data.prompt_groups import PromptGroups, group_by_prompt, pad_groups
from rlhf_jax.data.records.candidates import read_candidates
from rlhf_jax.data.records.label_columns import read_rated
from rlhf_jax.data.records.records import Beside, counts_text, read_instructions, read_pairs, read_prompts
from rlhf_jax.data.records.single_responses import responses_of_side
from rlhf_jax.data.records.unpaired import read_unpaired
from rlhf_jax.data.templates import handling_of, render
from rlhf_jax.data.tokenization import (
    SIDES,
    encode_answers,
    encode_labelled_pairs,
    encode_prompts,
    encode_sft,
)
from rlhf_jax.errors import UserError
from rlhf_jax.parallel import startup
from rlhf_jax.training.checkpoints.object_stores import at, write_text


class Rows(NamedTuple):
    """Rows that steps address by their number.

    Attributes:
      count: how many there are.
      tokens: real tokens of each [count].
      make: (indices of the global batch, rows of this process) -> this process's arrays.
      pairs: how many pairs fit a packed row; 0 where a row is one document or pair.
      layout: arrays that say which documents share which row; none where a row is one document or pair.
    """

    count: int
    tokens: np.ndarray
    make: Callable[[np.ndarray, Any], dict[str, np.ndarray]]
    pairs: int = 0
    layout: tuple[np.ndarray, ...] = ()

    def with_columns(self, columns: dict[str, np.ndarray]) -> Rows:
        """The same rows with further columns: arrays [count, ...] by name."""

        def make(index_B: np.ndarray, rows: Any) -> dict[str, np.ndarray]:
            # Columns are kept for all rows on every process; of a batch each takes the rows that it makes.
            return self.make(index_B, rows) | {name: x[index_B[rows]] for name, x in columns.items()}

        return self._replace(make=make)


def spread(rows: Rows, x_n: np.ndarray) -> np.ndarray:
    """A number of every document or pair as a column of rows: [count], or [count, places] where they hold several."""
    if not rows.layout:
        return x_n
    members, offsets, (_, places) = rows.layout
    # Both sides of a pair are documents of the layout, chosen first, and the pair has one number.
    unit = 2 if rows.pairs else 1
    column = np.zeros((rows.count, places // unit), x_n.dtype)
    for row in range(rows.count):
        mine = members[offsets[row] : offsets[row + 1] : unit] // unit
        column[row, : len(mine)] = x_n[mine]
    return column


def grouped_rows_of(split: Split, pad_id: int) -> tuple[Rows, Rows]:
    """Makes rows of one prompt each, with all its responses and pairs: (training rows, evaluation rows)."""
    groups = [group_by_prompt(found) for found in (split.train, split.eval)]
    sizes = (
        bucket(max(int(g.responses.lengths.max()) for g in groups), 8),
        max(g.most_responses for g in groups),
        max(g.most_pairs for g in groups),
    )
    for name, g in zip(("train", "eval"), groups, strict=True):
        if startup.is_main():
            print(
                f"data.{name}: {len(g)} prompts with {len(g.pairs)} pairs of {len(g.responses)} responses; "
                f"rows of {sizes[1]} responses, {len(g.responses) / (len(g) * sizes[1]):.1%} filled",
                flush=True,
            )

    def rows(g: PromptGroups) -> Rows:
        layout = (g.pairs, g.offsets, np.array([sizes[0], sizes[2]]))
        return Rows(
            len(g), g.tokens, lambda index_B, rows: pad_groups(g, index_B, sizes, pad_id, rows), layout=layout
        )

    return rows(groups[0]), rows(groups[1])


def rows_of(split: Split, data: ConfigDict, pad_id: int, seed: int) -> tuple[Rows, Rows, int]:
    """Makes the rows that steps address: (training rows, evaluation rows, R, the most response tokens of a row)."""
    if data.packing:
        return _packed(split, data.max_length, pad_id, seed)
    # One row length for both files and both sides of a pair, so that step and evaluation compile once.
    sides = [side for found in (split.train, split.eval) for side in _sides(found)]
    T, R = array_sizes(*sides)
    return _plain(split.train, T, pad_id), _plain(split.eval, T, pad_id), R


def candidate_rows(split: Split, pad_id: int) -> tuple[Rows, Rows, int]:
    """As `rows_of` for prompts with several responses, which stay together: a row is a prompt with all of its own."""
    T, R = array_sizes(split.train.sequences, split.eval.sequences)
    # One number of places for both files, so that step and evaluation compile once.
    N = max(found.places_nN.shape[1] for found in (split.train, split.eval))

    def rows(found: Candidates) -> Rows:
        make = partial(pad_candidates, found)
        return Rows(len(found), found.tokens, lambda index_B, rows: make(index_B, N, T, pad_id, rows))

    return rows(split.train), rows(split.eval), R


def _plain(found: Sequences | Pairs, T: int, pad_id: int) -> Rows:
    make = pad_pairs if isinstance(found, Pairs) else pad
    tokens = sum(side.lengths for side in _sides(found))
    return Rows(len(found), tokens, lambda index_B, rows: make(found, index_B, T, pad_id, rows))


def _packed(split: Split, max_length: int, pad_id: int, seed: int) -> tuple[Rows, Rows, int]:
    # Both sides of a pair share a row, so that a pair never lies on two devices. A reward model may read
    # tokens behind the end, which max_length does not count; so the longest pair decides where it is longer.
    most = max(int(sum(side.lengths for side in _sides(found)).max()) for found in (split.train, split.eval))
    longest = bucket(max(most, max_length * len(_sides(split.train))), 8)
    # Documents are assigned to rows once, before training, so that batch i is always the same rows.
    packs = [pack(found, longest, seed) for found in (split.train, split.eval)]
    R, S = (max(sizes) for sizes in zip(*((p.most_targets, p.most_documents) for p in packs), strict=True))
    for name, p in zip(("train", "eval"), packs, strict=True):
        if startup.is_main():
            print(f"data.{name}: {packing_said(p)}", flush=True)
    pairs = S // 2 if isinstance(split.train, Pairs) else 0

    def rows(p: Packs) -> Rows:
        layout = (p.members, p.offsets, np.array([p.length, S]))
        return Rows(
            len(p), p.tokens, lambda index_B, rows: pad_packs(p, index_B, R, S, pad_id, rows), pairs, layout
        )

    return rows(packs[0]), rows(packs[1]), R


def packing_said(p: Packs) -> str:
    """One line about the packed rows of a file, and how full rows of one document each would be."""
    alone = float(p.tokens.sum() / (len(p.documents) * bucket(int(p.documents.lengths.max()), 8)))
    return (
        f"packing: {len(p)} rows of {p.length} tokens, {p.filled:.1%} filled, "
        f"up to {p.most_documents} documents in one; one document a row would fill {alone:.1%}"
    )


def _sides(found: Sequences | Pairs) -> tuple[Sequences, ...]:
    return tuple(found) if isinstance(found, Pairs) else (found,)


# The packages whose versions decide what tokens a text becomes; a run that goes on compares them.
_TOKEN_MAKERS = ("tokenizers", "transformers", "jinja2")


class Split(NamedTuple):
    """Encoded rows for training and for evaluation.

    Attributes:
      eval_rows: the records that `eval` was made of.
      train_rows: those of `train`, for methods that need them.
    """

    train: Any
    eval: Any
    eval_rows: list[dict]
    train_rows: tuple[dict, ...] = ()


def instructions(data: ConfigDict, tokenizer: Any, seed: int, made_by: str) -> Split:
    """Reads demonstrations, as Sequences."""
    return _split(*_two_files(read_instructions, data, seed, made_by), encode_sft, tokenizer, data)


def pairs(data: ConfigDict, tokenizer: Any, seed: int, made_by: str, beside: Beside | None = None) -> Split:
    """Reads labelled pairs, as Pairs; rows that are held out share no prompt with training.

    The records beside them are those of the pairs that were kept, in the same order; beside: as `read_pairs` takes it.
    """
    read = partial(read_pairs, beside=beside)
    return _aligned(*_two_files(read, data, seed, made_by), encode_labelled_pairs, tokenizer, data)


def rated(data: ConfigDict, tokenizer: Any, seed: int, made_by: str, scale: Mapping[str, Any]) -> Split:
    """Reads rated responses, as Sequences, with the records of those that are kept; scale: as `read_rated` takes it."""
    read = partial(read_rated, **scale)
    return _aligned(*_two_files(read, data, seed, made_by), encode_answers, tokenizer, data)


def single_responses(data: ConfigDict, tokenizers: dict[str, Any], seed: int, made_by: str) -> Split:
    """Reads labelled pairs as demonstrations of their responses, as Sequences.

    tokenizers: for each side that is wanted, chosen or rejected, the one that its rows are encoded with. What is held
    out is whole pairs, which share no prompt with training.
    """
    files, found = _two_files(read_pairs, data, seed, made_by), []
    for pairs, name in zip(files, ("train", "eval"), strict=True):
        encoded, records = [], []
        for side, tokenizer in tokenizers.items():
            rows, left_out = responses_of_side(pairs, side)
            sequences, dropped = encode_sft(
                rows, tokenizer, data.template, data.max_length, handling_of(data)
            )
            say(f"data.{name}: {len(sequences)} {side} responses of {len(pairs)} pairs", left_out + dropped)
            encoded.append(sequences)
            records += rows
        found.append((end_to_end(encoded), records))
    return Split(found[0][0], found[1][0], found[1][1])


def candidates(data: ConfigDict, tokenizer: Any, seed: int, made_by: str) -> Split:
    """Reads prompts with several scored responses, as Candidates; the files of data.train may be several."""
    read = partial(read_candidates, query=data.query)
    split = _split(*_two_files(read, data, seed, made_by), encode_candidates, tokenizer, data)
    check_ranked(split.train, "data.train")
    return split


def unpaired(data: ConfigDict, tokenizer: Any, seed: int, made_by: str) -> Split:
    """Reads single responses, as Sequences; the records beside them say which are `liked`. Of chats the last turn."""
    read = partial(read_unpaired, desirable_from=data.desirable_from)
    encode = partial(encode_answers, all_turns=False)
    return _aligned(*_two_files(read, data, seed, made_by), encode, tokenizer, data)


def prompts(data: ConfigDict, tokenizer: Any, seed: int, made_by: str) -> Split:
    """Reads prompts. The records beside them are those of the prompts that were kept, in the same order."""
    train, held = _two_files(read_prompts, data, seed, made_by)
    encoded = []
    for rows, name in ((train, "train"), (held, "eval")):
        found, dropped, kept = encode_prompts(
            rows, tokenizer, data.template, data.max_prompt_length, handling_of(data)
        )
        say(f"data.{name}: {len(found)} prompts", dropped)
        # Aligned with the token rows: a reward model that reads text looks its records up by number.
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
    """Right-padded arrays of both sides of some pairs: {chosen,rejected}_{tokens,lengths,prompt_lengths}."""
    sides = {side: pad(getattr(found, side), index_B, T, pad_id, rows) for side in SIDES}
    return {f"{side}_{name}": x for side, arrays in sides.items() for name, x in arrays.items()}


def hold_out(rows: list[dict], eval_rows: int, seed: int) -> tuple[list[dict], list[dict], Counter[str]]:
    """Splits rows by prompt: (train, eval, counts of rows left out). No prompt is on both sides.

    Prompts are set aside with all their rows until they hold eval_rows rows and are a twentieth of all prompts (or
    eval_rows prompts): a hundred rows of one prompt would say little. eval_rows of these rows are drawn.
    """
    # By the rendered text, as the same prompt may stand in different columns of different records.
    by_prompt: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        by_prompt.setdefault(render(row, "alpaca"), []).append(i)
    rng = np.random.default_rng(seed)
    groups = list(by_prompt.values())
    # Of a small file at most about half is held out, so that something is left to train on.
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
    # The plus drops what was counted 0 times.
    return [row for i, row in enumerate(rows) if i not in aside], [rows[i] for i in kept], +left_out


def digests(*paths: str) -> dict[str, str]:
    """Hashes of a run's inputs and the versions of the packages that tokenize them, for a resumed run to compare."""
    from rlhf_jax.training.checkpoints.workdir import digest

    # Some methods take several files in one field.
    files = [one.strip() for path in paths for one in (path, *path.split(","))]
    found = {path: digest(local_path(path)) for path in files if path and local_path(path).exists()}
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
    # The date of process 0 counts: at midnight, and across time zones, machines disagree.
    startup.barrier("date")
    config.data.date = path.read_text().strip()
    if startup.is_main():
        print(
            f"data.date: the chat template is told {config.data.date}, in this run and when it goes on",
            flush=True,
        )


def _two_files(read: Any, data: ConfigDict, seed: int, made_by: str) -> tuple[list[dict], list[dict]]:
    chat = data.template == CHAT
    # Each draw has its own generator: what is drawn of one file does not depend on the other's size.
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
    """Draws `count` of the rows, or takes all when there are no more; they stay in their order."""
    if len(rows) <= count:
        return rows
    return [rows[i] for i in sorted(rng.choice(len(rows), count, replace=False))]


def _split(train: list[dict], held: list[dict], encode: Any, tokenizer: Any, data: ConfigDict) -> Split:
    found = []
    for rows, name in ((train, "train"), (held, "eval")):
        encoded, dropped = encode(rows, tokenizer, data.template, data.max_length, handling_of(data))
        say(f"data.{name}: {len(encoded)} rows", dropped)
        found.append(encoded)
    return Split(*found, held)


def _aligned(train: list[dict], held: list[dict], encode: Any, tokenizer: Any, data: ConfigDict) -> Split:
    """As `_split`, of an encoder that also says which rows it kept: the records are those of the encoded rows."""
    found, records = [], []
    for rows, name in ((train, "train"), (held, "eval")):
        encoded, dropped, kept = encode(rows, tokenizer, data.template, data.max_length, handling_of(data))
        say(f"data.{name}: {len(encoded)} rows", dropped)
        found.append(encoded)
        records.append([rows[i] for i in kept])
    return Split(*found, records[1], tuple(records[0]))


def say(text: str, skipped: Counter) -> None:
    """Prints, from the main process, what was read, what was left out of it and why."""
    if startup.is_main():
        print(f"{text}; {counts_text(skipped)}", flush=True)
