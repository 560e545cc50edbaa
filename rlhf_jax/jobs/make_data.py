"""Makes the instruction records that the methods and other jobs start from: the embedded world's, or a user's own.

Either way there is one file per purpose, and no prompt is in two of them: what a policy was trained on says nothing
about how it answers the evaluation's prompts.
"""

from __future__ import annotations

import random
from pathlib import Path

from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.data.records.records import counts_text, read_instructions, write_parquet
from rlhf_jax.errors import UserError
from rlhf_jax.microfarm import world
from rlhf_jax.training.checkpoints import lock
from rlhf_jax.training.checkpoints.workdir import write_json
from rlhf_jax.training.run import missing_inputs
from rlhf_jax.training.run.missing_inputs import TABLE, Needs, Read

NEEDS = Needs(reads=(Read("instructions", TABLE),))

# Of 20 rows: demonstrations, prompts whose samples are compared, prompts of PPO, validation, evaluation.
SHARES = {"sft": 8, "preference": 5, "unlabeled": 4, "val": 1, "eval": 2}
# With fewer, validation (a twentieth) would have fewer than five rows.
_MIN_ROWS = 100
_COLUMNS = ("instruction", "input", "output")


def run(config: ConfigDict, workdir: str) -> None:
    """Writes sft, preference, unlabeled, val and eval .parquet to WORKDIR, and the embedded world's tokenizer."""
    ranges.check_ranges(config.to_dict())
    missing_inputs.check_needs(NEEDS, config, workdir)
    with lock.holding(workdir):
        write_json(Path(workdir) / "config.json", config.to_dict())
        if config.instructions:
            folder = Path(workdir)
            said = split_instructions(config.instructions, folder, rows=config.rows, seed=config.seed)
            print(said, flush=True)
        else:
            print(f"{config.scale:g} x AlpacaFarm's splits", flush=True)
            world.build(workdir, seed=config.seed, scale=config.scale, vocab_size=config.vocab_size)


def split_instructions(path: str, folder: Path, *, rows: int, seed: int) -> str:
    """Writes one parquet file per purpose into `folder`, no prompt in two of them, and returns what was done.

    rows: so many, drawn with the seed; 0 takes all.

    Raises:
      UserError: no such file, or fewer than 100 rows of different instructions.
    """
    found, skipped = read_instructions(path)
    found = [{name: row.get(name, "") for name in _COLUMNS} for row in found if row.get("instruction")]
    # One row a prompt: otherwise a prompt could be trained on and evaluated on.
    by_prompt = {(row["instruction"], row["input"]): row for row in found}
    # Sorted before they are shuffled, so that the order of the file's rows does not matter.
    kept = [by_prompt[prompt] for prompt in sorted(by_prompt)]
    random.Random(f"rlhf_jax own data {seed}").shuffle(kept)
    repeated, kept = len(found) - len(kept), kept[: rows or None]
    if len(kept) < _MIN_ROWS:
        raise UserError(
            f"instructions: {path} has {len(kept)} different instructions with an output; give at least "
            f"{_MIN_ROWS}, so that each stage has some"
        )
    start, total = 0, sum(SHARES.values())
    for number, (name, _) in enumerate(SHARES.items(), 1):
        # Borders from cumulative shares: rounding each share by itself would lose rows at the end.
        stop = len(kept) * sum(list(SHARES.values())[:number]) // total
        write_parquet(folder / f"{name}.parquet", kept[start:stop])
        start = stop
    skipped["repeated instruction"] += repeated
    # Unary plus leaves out reasons that were counted zero times.
    return f"{len(kept)} rows of {path} among the stages; {counts_text(+skipped)}"
