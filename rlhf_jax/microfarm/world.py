"""Builds the embedded world: instructions with demonstrations, in AlpacaFarm's five splits, and a tokenizer.

    build("runs/world", seed=0)  ->  sft, preference, unlabeled, val, eval .parquet and tokenizer/

Columns: instruction, input, output (a demonstration of random quality), family (for reports; trainers do not
read it). Everything is a function of (seed, scale, vocab_size).
"""

import itertools
import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rlhf_jax.errors import UserError
from rlhf_jax.microfarm import tokenizer
from rlhf_jax.microfarm.families import draw_form, parse
from rlhf_jax.microfarm.writer import demonstration, write

# Rows at scale 1: the splits of AlpacaFarm (Dubois et al. 2023, section 3).
SPLITS: dict[str, int] = {"sft": 10_000, "preference": 10_000, "unlabeled": 20_000, "val": 2_000, "eval": 805}
_MIN_EVAL = 400  # below this a win rate says little
_MIN_ROWS = 8
_PATIENCE = 100  # draws of a form in search of a new instruction
# What prompts add around the text, so that the headings become few tokens.
_PROMPT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:{output}"

Row = dict[str, str]


def split_sizes(scale: float = 1.0) -> dict[str, int]:
    """Rows of each split. `eval` keeps at least 400 rows, or as many as `sft` has where that is fewer."""
    if not 0 < scale <= 2:
        raise UserError(
            f"scale: {scale} is outside (0, 2]; 1 gives AlpacaFarm's 42,805 rows, 0.05 a small world"
        )
    sizes = {name: max(_MIN_ROWS, round(rows * scale)) for name, rows in SPLITS.items()}
    sizes["eval"] = max(sizes["eval"], min(_MIN_EVAL, sizes["sft"]))
    return sizes


def rows(seed: int) -> Iterator[Row]:
    """Different instructions without end, each with a demonstration; families' shares hold for 90,000."""
    rng = random.Random(f"rlhf_jax microfarm {seed}")
    seen: set[tuple[str, str]] = set()
    while True:
        # A form is drawn once per row and then insists, so repeats do not thin out small families.
        form = draw_form(rng)
        for _ in range(_PATIENCE):
            instruction, text, task = form.write(rng)
            if (instruction, text) not in seen:
                seen.add((instruction, text))
                output = demonstration(task, rng)
                yield {"instruction": instruction, "input": text, "output": output, "family": task.family}
                break


def generate(*, seed: int, scale: float = 1.0) -> dict[str, list[Row]]:
    """The rows of every split. No (instruction, input) occurs twice."""
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
      vocab_size: tokens of the tokenizer, see `tokenizer.train`.

    Returns:
      Path of each split's file, and of "tokenizer".

    Raises:
      UserError: when `scale` or `vocab_size` is out of range, or the directory cannot be written.
    """
    folder = Path(directory)
    splits = generate(seed=seed, scale=scale)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = {name: _write(table, folder / f"{name}.parquet") for name, table in splits.items()}
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write the world ({error.strerror}); choose a folder that can be written"
        ) from None
    texts = (_PROMPT.format(**row) for name in ("sft", "unlabeled") for row in splits[name])
    paths["tokenizer"] = tokenizer.train(texts, folder / "tokenizer", vocab_size)
    return paths


def _write(table: list[Row], path: Path) -> Path:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    pq.write_table(pa.Table.from_pylist(table), part)
    os.replace(part, path)
    return path


def sample_demonstration(row: Mapping[str, str], rng: random.Random, *, excellent: bool = False) -> str:
    """Another demonstration for a row's instruction and input, of random quality unless `excellent`.

    Raises:
      UserError: for an instruction from outside the world.
    """
    task = parse(row["instruction"], row.get("input") or "")
    if task is None:
        raise UserError(
            f"instruction: {row['instruction']!r} is not one of the embedded world's; use its own rows"
        )
    return write(task, rng) if excellent else demonstration(task, rng)
