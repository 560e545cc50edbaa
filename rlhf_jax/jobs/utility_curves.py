"""What responses are truly worth in the embedded world, along a run and along the n of best-of-n.

A reward model is over-optimised where its own score still rises and the true utility falls. Two kinds of pressure show
it: steps of a method that samples (each evaluation keeps its samples), and the number of samples of which the best is
taken. For every prompt the two are put side by side. Needs no jax and no judge.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.data.files.tables import read_rows, require_columns, write_parquet
from rlhf_jax.data.records.left_out import counts_text
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.best_of_k import order_weights
from rlhf_jax.evaluation.measures.win_rate import utility_wins
from rlhf_jax.evaluation.report.curves import read_series
from rlhf_jax.jobs.evaluate.evaluation_inputs import read_stages
from rlhf_jax.microfarm.utility import utility
from rlhf_jax.training.checkpoints import lock
from rlhf_jax.training.checkpoints.workdir import one_writer, write_json
from rlhf_jax.training.run import missing_inputs
from rlhf_jax.training.run.missing_inputs import (
    NAMED_TABLES,
    TABLE,
    WITHIN,
    Needs,
    Read,
    made_by,
    named_paths,
)

Row = dict[str, Any]


def _folders(text: str) -> tuple[str, ...]:
    return tuple(named_paths(text, "runs").values())


NEEDS = Needs(
    reads=(
        Read("runs", WITHIN, made_by("ppo"), paths=_folders),
        Read("scored", NAMED_TABLES, made_by("score", "scores")),
        Read("baseline", TABLE, made_by("make_data", "data")),
    )
)
ranges.own_rows("utility_curves", runs=ranges.TEXT, scored=ranges.TEXT)


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Writes steps.parquet (a row for every run, step and prompt), best_of.parquet (the same for n) and curves.txt."""
    ranges.check_ranges(config.to_dict())
    missing_inputs.check_needs(NEEDS, config, workdir)
    if not (config.runs or config.scored):
        raise UserError("runs: names none, and scored neither; write for example runs=ppo=runs/farm/ppo")
    with lock.holding(workdir):
        folder, counts = Path(workdir), Counter()
        write_json(folder / "config.json", config.to_dict())
        baseline = Baseline(config.baseline)
        steps = [
            row
            for name, path in named_paths(config.runs, "runs").items()
            for row in step_rows(name, Path(path), baseline, counts)
        ]
        best = [
            row
            for name, path in named_paths(config.scored, "scored").items()
            for row in best_rows(name, path, baseline, counts)
        ]
        for name, rows in (("steps", steps), ("best_of", best)):
            if rows:
                write_parquet(folder / f"{name}.parquet", rows)
        text = "\n\n".join(filter(None, (curves_text(steps, "step"), curves_text(best, "n"))))
        (folder / "curves.txt").write_text(text + "\n")
        print(
            f"{text}\n{counts_text(+counts) if +counts else 'nothing left out'}; wrote {folder}", flush=True
        )


class Baseline:
    """Outputs that every response is compared with, by their prompt; path "": none, and no win is known."""

    def __init__(self, path: str) -> None:
        rows = read_rows(path, made_by=made_by("make_data", "data")) if path else []
        if rows:
            require_columns(rows, ("instruction", "output"), path)
        self.utilities = {key: utility(*key, row["output"]) for row in rows if (key := _prompt(row))}

    def measured(self, prompt: tuple[str, str], texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(true utilities [K], wins [K] against the baseline's output, NaN where it has none)."""
        own = np.array([utility(*prompt, text) for text in texts])
        base = self.utilities.get(prompt)
        return own, np.full(len(own), np.nan) if base is None else utility_wins(own, np.full(len(own), base))


def step_rows(name: str, folder: Path, baseline: Baseline, counts: Counter[str]) -> Iterator[Row]:
    """A row for every prompt of every evaluation of a run, with the KL that the run measured there."""
    files = sorted((folder / "samples").glob("*.jsonl"))
    if not files:
        raise UserError(
            f"runs: {folder} has no samples/*.jsonl; name a run of a method that samples, such as ppo"
        )
    (stage, *_), _ = read_stages(f"{name}={folder}")
    kl = read_series(stage.rows, "eval/kl")
    for file in files:
        step = int(file.stem)
        at = np.flatnonzero(kl.steps == step)
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            prompt = _prompt(row)
            if prompt is None or not isinstance(row.get("output"), str):
                counts["sample without an instruction"] += 1
                continue
            score, own, win = row.get("score"), *baseline.measured(prompt, [row["output"]])
            yield _row(name, prompt, {"step": step}, score, own[0], win[0]) | {
                "kl": float(kl.values[at[0]]) if len(at) else None
            }


def best_rows(name: str, path: str, baseline: Baseline, counts: Counter[str]) -> Iterator[Row]:
    """A row for every prompt and n = 1, 2, 4, ...: what the best of n by the score is worth, over all choices of n.

    The mean over all subsets of n of the N samples, as `best_of_k` has it for the score itself.
    """
    rows = read_rows(path, made_by=made_by("score", "scores"))
    require_columns(rows, ("instruction", "responses", "scores"), path)
    # All prompts have the same places, but for those with fewer scored samples, which lack the last ones.
    places = _doublings(max(len(row["responses"]) for row in rows))
    for row in rows:
        prompt = _prompt(row)
        pairs = [
            (score, -place, text)
            for place, (text, score) in enumerate(zip(row["responses"], row["scores"], strict=True))
            if isinstance(text, str) and isinstance(score, int | float) and math.isfinite(score)
        ]
        counts["response without a score"] += len(row["responses"]) - len(pairs)
        if prompt is None or not pairs:
            counts["prompt without an instruction or a scored response"] += 1
            continue
        # Of equal scores the first sample is the better one, as best_of_n takes it.
        pairs.sort(key=lambda pair: pair[:2])
        scores = np.array([score for score, _, _ in pairs], np.float64)
        own, wins = baseline.measured(prompt, [text for _, _, text in pairs])
        weights = order_weights(len(pairs))
        for n in (n for n in places if n <= len(pairs)):
            w = weights[n - 1]
            row = _row(name, prompt, {"n": n}, w @ scores, w @ own, w @ wins)
            # Of the best of n draws (Stiennon et al. 2020, appendix G.3), whatever the policy and the score are.
            yield row | {"kl": math.log(n) - (n - 1) / n}


def curves_text(rows: Sequence[Mapping[str, Any]], at: str) -> str:
    """The means of every run at every place, for a terminal; "" without rows."""
    if not rows:
        return ""
    width = max(len(row["run"]) for row in rows)
    lines = [f"{'run':<{width}} {at:>6}    score  utility  win against the baseline, %"]
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["run"], row[at]), []).append(row)
    for (name, place), some in groups.items():
        score, own, win = (_mean([row[key] for row in some]) for key in ("score", "utility", "true_win"))
        lines.append(f"{name:<{width}} {place:6d}  {score:+7.3f}  {own:7.3f}  {100 * win:7.1f}")
    return "\n".join(lines)


def _prompt(row: Mapping[str, Any]) -> tuple[str, str] | None:
    instruction = row.get("instruction")
    return (instruction, row.get("input") or "") if isinstance(instruction, str) else None


def _row(name: str, prompt: tuple[str, str], at: Row, score: float | None, own: float, win: float) -> Row:
    known = score is not None and math.isfinite(score)
    return {"run": name, **at, "instruction": prompt[0], "input": prompt[1]} | {
        "score": float(score) if known else None,
        "utility": float(own),
        "true_win": None if math.isnan(win) else float(win),
    }


def _doublings(most: int) -> list[int]:
    return sorted({most, *(1 << i for i in range(most.bit_length()) if 1 << i <= most)})


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan
