"""Reads what the evaluate job compares: outputs of several methods on the same instructions, and folders of runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from rlhf_jax.data.records.records import read_table
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.doctor.metric_rows import read_metric_rows
from rlhf_jax.evaluation.report.report_data import ReportStage
from rlhf_jax.jobs.label_rows import wrong_input
from rlhf_jax.settings.pages import closest
from rlhf_jax.training.run.missing_inputs import made_by_generate, named_paths

# (instruction, input, how many rows of the file had this
# prompt before): unique also where a file repeats a prompt.
Key = tuple[str, str, int]


class Outputs(NamedTuple):
    """The outputs of all methods on the instructions that all of them answered.

    prompts: (instruction, input) [N], in the baseline's order. texts: method -> its outputs [N].

    The baseline is in `texts` under its own name. left_out: file -> reason -> rows that are not compared.
    """

    prompts: list[tuple[str, str]]
    texts: dict[str, list[str]]
    baseline: str
    left_out: dict[str, dict[str, int]]

    @property
    def rivals(self) -> list[str]:
        """The methods that are judged against the baseline."""
        return [name for name in self.texts if name != self.baseline]

    def records(self, method: str) -> list[dict[str, str]]:
        """One method's rows as the judges' layer reads them."""
        return [
            {"instruction": instruction, "input": extra, "output": text, "generator": method}
            for (instruction, extra), text in zip(self.prompts, self.texts[method], strict=True)
        ]

    def line(self) -> str:
        """Says how many instructions are compared, and what was left out and why."""
        out = [
            f"{name} {n} {why}" for name, reasons in self.left_out.items() for why, n in reasons.items() if n
        ]
        return f"instructions: {len(self.prompts)} compared; left out: {', '.join(out) or 'none'}"


def read_outputs(config: ConfigDict) -> Outputs:
    """Reads the baseline and every method, and keeps the instructions that all of them answered.

    All win rates are then over the same rows. An empty output is an answer; a missing one is not. Raises
    UserError for a missing file (with the command that makes it), a wrong name, or files without a common
    instruction.
    """
    files = named_paths(config.outputs, "outputs")
    _check_names(config, files)
    left_out: dict[str, Counter] = {}
    tables: dict[str, dict[Key, str]] = {}
    for name, path in ({config.baseline_name: config.baseline} | files).items():
        tables[name], left_out[name] = _by_prompt(
            read_table(path, made_by=made_by_generate(name, path)), path
        )
    _check_baseline(config, files, tables)
    shared = _shared(tables, left_out, config.baseline_name, files)
    # Cut only after the join: cut before, two files in another order would hardly have a prompt in common.
    if config.max_instructions and len(shared) > config.max_instructions:
        left_out["all"] = Counter({"beyond max_instructions": len(shared) - config.max_instructions})
        shared = shared[: config.max_instructions]
    return Outputs(
        prompts=[key[:2] for key in shared],
        texts={name: [table[key] for key in shared] for name, table in tables.items()},
        baseline=config.baseline_name,
        left_out={name: dict(reasons) for name, reasons in left_out.items() if reasons},
    )


def read_stages(runs: str) -> tuple[list[ReportStage], list[str]]:
    """Reads the curves of every run folder in "NAME=FOLDER,...", and a note for each that has none."""
    stages, notes = [], []
    for name, folder in named_paths(runs, "runs").items():
        path = Path(folder) / "metrics.jsonl"
        if not path.is_file():
            notes.append(f"runs: no {path}; {name} has no curves in the report")
            continue
        rows, broken, unfinished = read_metric_rows(path)
        if left_out := len(broken) + unfinished:
            notes.append(f"runs: {path}: {left_out} broken lines left out")
        steps = [row["step"] for row in rows if isinstance(row.get("step"), int | float)]
        summary = f"{max(steps):,.0f} steps" if steps else ""
        stages.append(ReportStage(name, rows, training_seconds(rows), summary, _settings(Path(folder))))
    return stages, notes


def _settings(folder: Path) -> dict:
    """A run's page, for the findings about it; {} where it cannot be read, for then they are told without values."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def training_seconds(rows: Sequence[Mapping[str, object]]) -> float | None:
    """Adds up the seconds that a run spent, from what its loop logged; None when it logged no times.

    A row's timing_s/step is the mean over the steps since the row before; evaluations, checkpoints and
    compilation are logged beside it, in full.
    """
    total, last, timed = 0.0, 0.0, False
    for row in rows:
        step, each = row.get("step"), row.get("timing_s/step")
        if isinstance(step, int | float) and isinstance(each, int | float):
            # A run that resumed logs some steps again; their rows must not make time negative.
            total += each * max(step - last, 0.0)
            last, timed = step, True
        beside = (row.get(f"timing_s/{name}") for name in ("eval", "save", "compile"))
        total += sum(x for x in beside if isinstance(x, int | float))
    return total if timed else None


def _check_names(config: ConfigDict, files: Mapping[str, str]) -> None:
    if not files:
        raise UserError(
            "outputs: names no file; write NAME=FILE,NAME=FILE, as in sft=a.parquet,ppo=b.parquet"
        )
    known = [*files, config.baseline_name]
    if config.utility and config.reference_method not in known:
        hint = closest(config.reference_method, known) or f"; use one of {', '.join(known)}"
        raise UserError(f"reference_method: {config.reference_method!r} is not among the outputs{hint}")


def _check_baseline(
    config: ConfigDict, files: Mapping[str, str], tables: Mapping[str, dict[Key, str]]
) -> None:
    """Raises UserError where a method has the baseline's name and is not the baseline, with the same outputs."""
    name = config.baseline_name
    if name not in files:
        return
    if len(files) == 1:
        raise UserError(f"outputs: only the baseline {name!r} is named; name a method to compare it with")
    rows = read_table(config.baseline, made_by=made_by_generate(name, config.baseline))
    found, _ = _by_prompt(rows, config.baseline)
    if found != tables[name]:
        raise UserError(
            f"outputs: {name!r} is also baseline_name, but {files[name]} holds other outputs than "
            f"{config.baseline}; rename one of them"
        )


def _by_prompt(rows: Iterable[Mapping[str, object]], path: str) -> tuple[dict[Key, str], Counter]:
    """Returns outputs by prompt; the n-th row of a repeated prompt meets the n-th of the other files."""
    table: dict[Key, str] = {}
    seen: Counter = Counter()
    left_out: Counter = Counter()
    names: set[str] = set()
    for row in rows:
        names.update(row)
        instruction, output = row.get("instruction", row.get("prompt")), row.get("output")
        if not isinstance(instruction, str):
            left_out["without instruction"] += 1
        elif not isinstance(output, str):
            left_out["without output"] += 1
        elif wrong := wrong_input(row):
            left_out[wrong] += 1
        else:
            extra = row.get("input")
            prompt = (_clean(instruction), _clean(extra) if isinstance(extra, str) else "")
            # An empty output stays: to say nothing is an answer, which loses its comparison.
            table[*prompt, seen[prompt]] = _clean(output)
            seen[prompt] += 1
    if not table:
        reasons = ", ".join(f"{n} {why}" for why, n in left_out.items())
        raise UserError(
            f"{path}: no row has text in instruction and output ({reasons}); found {', '.join(sorted(names))}"
        )
    return table, left_out


def _clean(text: str) -> str:
    """Replaces lone surrogates, which JSON can hold but no file or request can, by "?"."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _shared(
    tables: Mapping[str, dict[Key, str]],
    left_out: Mapping[str, Counter],
    baseline: str,
    files: Mapping[str, str],
) -> list[Key]:
    """Returns the keys that every table has, in the baseline's order, and counts the others by who lacks them."""
    # First each file against the baseline, for an error that names the one that does not belong.
    for name, table in tables.items():
        if not tables[baseline].keys() & table.keys():
            raise UserError(
                f"outputs: {name}: none of the {len(table)} instructions (with input) of {files[name]} is "
                f"among the {len(tables[baseline])} of {baseline}; give outputs to the same instructions"
            )
    shared = [key for key in tables[baseline] if all(key in table for table in tables.values())]
    if not shared:
        raise UserError(
            f"outputs: no instruction is answered by all of {', '.join(tables)}; rank fewer of them"
        )
    common = set(shared)
    for name, table in tables.items():
        for key in (key for key in table if key not in common):
            lacking = [other for other in tables if key not in tables[other]]
            left_out[name][f"not in {' or '.join(lacking)}"] += 1
    return shared
