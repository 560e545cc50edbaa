"""Makes the instruction records that the methods and other jobs start from: the embedded world's, or a user's own.

Either way there is one file per purpose, and no prompt is in two of them: what a policy was trained on says nothing
about how it answers the evaluation's prompts.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.data.records.messages import messages_of
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
_COLUMNS = ("instruction", "input", "prompt", "messages", "output", "ended")


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
    # With messages, so that conversations stay what they are and every stage may choose its template.
    records, skipped = read_instructions(path, chat=True)
    found = []
    for record in records:
        beside = record.get("output_fields", {})
        if beside.get("tool_calls"):
            skipped["a response that calls tools"] += 1
        elif beside.get("train") is False:
            skipped["response with weight 0"] += 1
        else:
            skipped.columns.update(f"{name} of the last message" for name in beside)
            found.append(_row(record))
    # One row a prompt: otherwise a prompt could be trained on and evaluated on.
    by_prompt = {(row.get("prompt") or row["instruction"], row.get("input", "")): row for row in found}
    # Sorted before they are shuffled, so that the order of the file's rows does not matter.
    kept = [by_prompt[prompt] for prompt in sorted(by_prompt)]
    random.Random(f"rlhf_jax own data {seed}").shuffle(kept)
    if repeated := len(found) - len(kept):
        skipped["repeated instruction"] = repeated
    # Which template writes the rows is known to the stages alone, and each says what there is to say of it.
    for note in [note for note in skipped.notes if "template" in note]:
        del skipped.notes[note]
    kept = kept[: rows or None]
    if len(kept) < _MIN_ROWS:
        raise UserError(
            f"instructions: {path} has {len(kept)} different instructions with an output; give at least "
            f"{_MIN_ROWS}, so that each stage has some ({counts_text(skipped)})"
        )
    start, total = 0, sum(SHARES.values())
    for number, (name, _) in enumerate(SHARES.items(), 1):
        # Borders from cumulative shares: rounding each share by itself would lose rows at the end.
        stop = len(kept) * sum(list(SHARES.values())[:number]) // total
        write_parquet(folder / f"{name}.parquet", kept[start:stop])
        start = stop
    return f"{len(kept)} rows of {path} among the stages; {counts_text(skipped)}"


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is written of a record: its messages only where they say more than the prompt's columns."""
    row = {name: record[name] for name in _COLUMNS if name in record}
    if messages_of(record | {"messages": None}) == record["messages"]:
        del row["messages"]
    return row
