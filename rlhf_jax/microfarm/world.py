"""Builds the data of the embedded world: AlpacaFarm's five splits of demonstrations, and a tokenizer.

    build("runs/world", seed=0)  ->  sft, preference, unlabeled, val, eval .parquet and tokenizer/

It is a small closed part of English in which a response's true quality can be computed, so that a whole RLHF
run can be tried and judged on a laptop.

Columns: instruction, input, output (a demonstration of random quality), family (for reports;
trainers do not read it). Everything is a function of (seed, scale, vocab_size).
"""

import itertools
import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rlhf_jax.data.tokens import tokenizer_files
from rlhf_jax.errors import UserError
from rlhf_jax.microfarm.families import draw_form, parse
from rlhf_jax.microfarm.writer import demonstration, write_response

# Rows at scale 1: the splits of AlpacaFarm (Dubois et al. 2023, section 3).
SPLITS: dict[str, int] = {"sft": 10_000, "preference": 10_000, "unlabeled": 20_000, "val": 2_000, "eval": 805}
# With fewer rows the standard error of a win rate exceeds 2.5 points.
_MIN_EVAL = 400
_MIN_ROWS = 8
# How often a form is drawn in search of an instruction that is new, before another form is tried.
_PATIENCE = 100
# The tokenizer is trained on texts inside the prompt's headings, so that the headings become few tokens.
_PROMPT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:{output}"

Row = dict[str, str]


def split_sizes(scale: float = 1.0) -> dict[str, int]:
    """Number of rows of each split; `eval` keeps at least 400, or as many as `sft` has if that is fewer."""
    if not 0 < scale <= 2:
        raise UserError(
            f"scale: {scale} is outside (0, 2]; 1 gives AlpacaFarm's 42,805 rows, 0.05 a small world"
        )
    sizes = {name: max(_MIN_ROWS, round(rows * scale)) for name, rows in SPLITS.items()}
    sizes["eval"] = max(sizes["eval"], min(_MIN_EVAL, sizes["sft"]))
    return sizes


def rows(seed: int) -> Iterator[Row]:
    """Yield rows with distinct instructions, each with a demonstration, without end.

    The families keep their shares for about 90,000 rows; beyond that the small ones run out of instructions.
    """
    # Seeded by a string, which Python hashes with SHA-512: the stream is the same on every machine and does
    # not depend on PYTHONHASHSEED.
    rng = random.Random(f"rlhf_jax microfarm {seed}")
    seen: set[tuple[str, str]] = set()
    while True:
        # Keep the form until it gives a new instruction. Drawing another form after each repeat would take
        # rows from the small families, which repeat themselves most.
        form = draw_form(rng)
        for _ in range(_PATIENCE):
            instruction, text, task = form.write(rng)
            if (instruction, text) not in seen:
                seen.add((instruction, text))
                output = demonstration(task, rng)
                yield {"instruction": instruction, "input": text, "output": output, "family": task.family}
                break


def generate_splits(*, seed: int, scale: float = 1.0) -> dict[str, list[Row]]:
    """Generate the rows of every split. No pair of instruction and input occurs twice."""
    sizes = split_sizes(scale)
    drawn = list(itertools.islice(rows(seed), sum(sizes.values())))
    # Small families run short of new instructions towards the end; after shuffling all splits are alike.
    random.Random(f"rlhf_jax microfarm order {seed}").shuffle(drawn)
    splits, start = {}, 0
    for name, size in sizes.items():
        splits[name] = drawn[start : start + size]
        start += size
    return splits


def build(
    directory: str | os.PathLike[str], *, seed: int, scale: float = 1.0, vocab_size: int = 1024
) -> dict[str, Path]:
    """Write the world into `directory`: one parquet file per split and the folder `tokenizer`.

    Each file appears whole or not at all; an existing one is replaced.

    Args:
      scale: size relative to AlpacaFarm's (10k sft, 10k preference, 20k unlabeled, 2k val, 805 eval).
      vocab_size: tokens of the tokenizer, see `tokenizer_files.train_tokenizer`.

    Returns:
      Path of each split's file, and of "tokenizer".

    Raises:
      UserError: when `scale` or `vocab_size` is out of range, or the directory cannot be written.
    """
    folder = Path(directory)
    splits = generate_splits(seed=seed, scale=scale)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = {name: _write(table, folder / f"{name}.parquet") for name, table in splits.items()}
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write the world ({error.strerror}); choose a folder that can be written"
        ) from None
    # Training splits only: a tokenizer of real data is not fitted to the evaluation's texts either.
    texts = (_PROMPT.format(**row) for name in ("sft", "unlabeled") for row in splits[name])
    paths["tokenizer"] = tokenizer_files.train_tokenizer(texts, folder / "tokenizer", vocab_size)
    return paths


def _write(table: list[Row], path: Path) -> Path:
    # Write beside the target and rename, so that an interrupted run leaves no half-written split behind.
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    pq.write_table(pa.Table.from_pylist(table), part)
    os.replace(part, path)
    return path


def sample_demonstration(row: Mapping[str, str], rng: random.Random, *, excellent: bool = False) -> str:
    """Write another demonstration for a row's instruction and input, of random quality unless `excellent`.

    Raises:
      UserError: for an instruction from outside the world.
    """
    task = parse(row["instruction"], row.get("input") or "")
    if task is None:
        raise UserError(
            f"instruction: {row['instruction']!r} is not one of the embedded world's; use its own rows"
        )
    return write_response(task, rng) if excellent else demonstration(task, rng)
