"""Ranks methods by labels that exist already: nobody is asked, no judge and no key is needed.

Each method has a file of judged pairs, output_1 the baseline's and output_2 its own: annotations.parquet of an
evaluation, labels.parquet of the annotate job, AlpacaEval's annotations.json.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from rlhf_jax.annotation.formats import read_feedback
from rlhf_jax.data.files.tables import read_table
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.leaderboards.leaderboard import LeaderboardRow, average_length
from rlhf_jax.evaluation.measures.win_rate import read_preferences, win_rate
from rlhf_jax.jobs.evaluate import evaluation_measures as measures
from rlhf_jax.jobs.evaluate import evaluation_results as results
from rlhf_jax.jobs.evaluate.evaluation_findings import examine_evaluation
from rlhf_jax.jobs.evaluate.evaluation_inputs import Key, Outputs
from rlhf_jax.jobs.label_rows import one_per_pair, usable_labels
from rlhf_jax.training.run.missing_inputs import named_paths

SHOWN = "labels that were there"


def run_label_agreement(config: ConfigDict, folder: Path) -> None:
    """Ranks the methods of config.judged, and writes the leaderboard, summary.json, report.html and the rest.

    All win rates are over the instructions that every file has. Raises UserError for files that are missing, hold no
    pairs, or were compared with different outputs of the baseline, and for too few labels.
    """
    _check(config)
    tables = {name: _table(name, path) for name, path in named_paths(config.judged, "judged").items()}
    outputs, rows = _shared(tables, config)
    print(outputs.line(), flush=True)
    extras = measures.read_extras(config)
    preferences = {name: read_preferences([row["preference"] for row in some]) for name, some in rows.items()}
    rates = {name: _win_rate(name, x, config.min_coverage) for name, x in preferences.items()}
    measured = measures.measure(
        rows,
        dict(sorted(preferences.items(), key=lambda item: -rates[item[0]].win_rate)),
        outputs.baseline,
        extras,
        length_control=config.length_control,
        min_coverage=config.min_coverage,
        seed=config.seed,
    )
    judges = {name: _annotators(some) for name, some in rows.items()}
    board = [
        LeaderboardRow(
            method=name,
            judge=judges.get(name, ""),
            baseline=outputs.baseline,
            win_rate=rates.get(name),
            avg_length=average_length(texts),
            n_outputs=len(texts),
            length_controlled=measured.controlled.get(name),
        )
        for name, texts in outputs.texts.items()
    ]
    found = results.Results(
        outputs=outputs,
        rows=[*board, *extras.published],
        preferences=preferences,
        measured=measured,
        statuses={name: dict(Counter(map(_status, some))) for name, some in rows.items()},
        costs={},
        notes=measured.notes,
        examined=examine_evaluation(config, board=board, judged=rows),
    )
    everyone = ", ".join(sorted(set(judges.values()))) or SHOWN
    results.write_results(found, config, results.Judged(everyone, (), f"{everyone} ({SHOWN})"), folder)


def _check(config: ConfigDict) -> None:
    if config.baseline_name in named_paths(config.judged, "judged"):
        raise UserError(
            f"judged: {config.baseline_name!r} is also baseline_name, the name of output_1; rename one of them"
        )
    if config.utility:
        raise UserError(
            "judged: utility: True; the embedded world's utilities need outputs, set utility=False to rank by labels"
        )
    if config.dry_run or config.transport == "cancel":
        raise UserError("judged: with it nobody is asked; leave out dry_run and transport")


def _table(name: str, path: str) -> dict[Key, dict]:
    """Reads the judged pairs of one method by prompt, and prints what of the file is not used."""
    rows = read_feedback(path, "sparse_rankings") if path.endswith(".csv") else read_table(path)
    usable = usable_labels(rows, path)
    if line := usable.line(path):
        print(line, flush=True)
    # A file may hold both orders of a pair or several judges' labels; a win rate counts each pair once.
    joined = one_per_pair(usable.rows)
    for line in joined.lines(path):
        print(line, flush=True)
    pairs = joined.rows
    # A file of several models' outputs would get one win
    # rate for all of them together. NaN is a missing name.
    named_2 = [row.get("generator_2") for row in pairs]
    models = sorted(
        {" ".join(str(name).split()) for name in named_2 if name is not None and name == name} - {""}
    )
    if len(models) > 1:
        raise UserError(
            f"judged: {name}: {path} holds outputs of {len(models)} models ({', '.join(models[:4])}); give one file "
            "for each, or rate them all with configs/measure.py"
        )
    table: dict[Key, dict] = {}
    seen: Counter = Counter()
    # Pairs that repeat a prompt meet the pairs of the other files in the same order.
    for row in pairs:
        prompt = (row["instruction"], row["input"])
        table[*prompt, seen[prompt]] = row
        seen[prompt] += 1
    return table


def _shared(
    tables: Mapping[str, dict[Key, dict]], config: ConfigDict
) -> tuple[Outputs, dict[str, list[dict]]]:
    """Finds the prompts that every file has, in the order of the first: (outputs, label rows of each method)."""
    first = next(iter(tables.values()))
    keys = [key for key in first if all(key in table for table in tables.values())]
    if not keys:
        raise UserError(f"judged: no instruction is in all of {', '.join(tables)}; rank fewer of them")
    left_out = {name: Counter() for name in tables}
    for name, table in tables.items():
        for key in table.keys() - set(keys):
            lacking = [other for other in tables if key not in tables[other]]
            left_out[name][f"not in {' or '.join(lacking)}"] += 1
    if config.max_instructions and len(keys) > config.max_instructions:
        left_out["all"] = Counter({"beyond max_instructions": len(keys) - config.max_instructions})
        keys = keys[: config.max_instructions]
    rows = {name: [table[key] for key in keys] for name, table in tables.items()}
    base = [row["output_1"] for row in next(iter(rows.values()))]
    # Win rates against different outputs of the baseline would stand in one table and not compare.
    for name, some in rows.items():
        other = sum(row["output_1"] != text for row, text in zip(some, base, strict=True))
        if other:
            raise UserError(
                f"judged: {name}: output_1 is another than {next(iter(rows))}'s in {other} of {len(some)} rows; rank "
                "methods together that were compared with one baseline"
            )
    texts = {config.baseline_name: base} | {
        name: [row["output_2"] for row in some] for name, some in rows.items()
    }
    counted = {name: dict(reasons) for name, reasons in left_out.items() if reasons}
    return Outputs([key[:2] for key in keys], texts, config.baseline_name, counted), rows


def _win_rate(name: str, preferences: object, min_coverage: float) -> object:
    try:
        return win_rate(preferences, min_coverage=min_coverage)
    except UserError as error:
        raise UserError(f"judged: {name}: {error}") from None


def _annotators(rows: Sequence[Mapping]) -> str:
    """Names who labelled, as the rows say it; a pool by its own name."""
    names = {str(row.get("pool") or row.get("annotator") or "") for row in rows} - {""}
    return ", ".join(sorted(names)[:3]) or SHOWN


def _status(row: Mapping) -> str:
    return str(row.get("status") or ("ok" if row["preference"] is not None else "without a label"))
