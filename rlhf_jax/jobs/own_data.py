"""A user's own instruction file in the place of the embedded world: split among the stages of the farm."""

from __future__ import annotations

import random
from pathlib import Path

from rlhf_jax.data.records import describe, read_instructions, write_parquet
from rlhf_jax.errors import UserError

# Of 20 rows: demonstrations, prompts whose samples are compared, prompts of PPO, validation, evaluation.
SHARES = {"sft": 8, "preference": 5, "unlabeled": 4, "val": 1, "eval": 2}
_MIN_ROWS = 100
_COLUMNS = ("instruction", "input", "output")


def split(path: str, folder: Path, *, rows: int, seed: int) -> str:
    """Writes one parquet file per stage into `folder`, no prompt in two of them, and returns what was done.

    rows: so many, drawn with the seed; 0 takes all.

    Raises:
      UserError: no such file, or fewer than 100 rows of different instructions.
    """
    found, skipped = read_instructions(path)
    found = [{name: row.get(name, "") for name in _COLUMNS} for row in found if row.get("instruction")]
    by_prompt = {(row["instruction"], row["input"]): row for row in found}
    kept = [by_prompt[prompt] for prompt in sorted(by_prompt)]
    random.Random(f"rlhf_jax own data {seed}").shuffle(kept)
    repeated, kept = len(found) - len(kept), kept[: rows or None]
    if len(kept) < _MIN_ROWS:
        raise UserError(
            f"world.instructions: {path} has {len(kept)} different instructions with an output; give at least "
            f"{_MIN_ROWS}, so that each stage has some"
        )
    start, total = 0, sum(SHARES.values())
    for number, (name, _) in enumerate(SHARES.items(), 1):
        stop = len(kept) * sum(list(SHARES.values())[:number]) // total
        write_parquet(folder / f"{name}.parquet", kept[start:stop])
        start = stop
    skipped["repeated instruction"] += repeated
    return f"{len(kept)} rows of {path} among the stages; {describe(+skipped)}"
