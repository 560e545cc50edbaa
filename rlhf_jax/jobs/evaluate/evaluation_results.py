"""Writes what the evaluate job found: as terminal lines, as summary.json and as the content of the report."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from rlhf_jax import __version__
from rlhf_jax.data.files.tables import write_parquet
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.doctor.examine_results import NOTHING, Examined
from rlhf_jax.evaluation.doctor.findings import FINDINGS, findings_json
from rlhf_jax.evaluation.leaderboards.alpaca_eval_files import NO_WEIGHTS, weights_csv
from rlhf_jax.evaluation.leaderboards.leaderboard import (
    LeaderboardRow,
    interval_text,
    leaderboard_csv,
    leaderboard_markdown,
    leaderboard_text,
)
from rlhf_jax.evaluation.measures.win_rate import utility_wins
from rlhf_jax.evaluation.report.page import write_report
from rlhf_jax.evaluation.report.report_data import JudgeResult, Report, ReportSample, ReportStage, Response
from rlhf_jax.jobs.evaluate.evaluation_inputs import Outputs
from rlhf_jax.jobs.evaluate.evaluation_measures import Measures, difference_lines

# Sample responses in the report: those drawn by the seed, and those where the methods differ most.
N_DRAWN, N_DIFFERENT = 6, 6


@dataclasses.dataclass(frozen=True)
class Judged:
    """Who gave the labels: the name for tables, the ids of the judges, and how the report says it."""

    name: str
    ids: Sequence[str]
    shown: str


@dataclasses.dataclass(frozen=True)
class Results:
    """All that was found. `preferences`: method -> label of every instruction [N], NaN where there is none.

    utilities: method -> [N], {} where they are not known. kinds: the family of every instruction [N], ()
    where that is not known. statuses: method -> status -> rows. costs: what judging took. reward_model: a
    `true_utility.RewardModelAgreement`, None where there is none. measured: the labels' further measures.
    examined: what the doctor found.
    """

    outputs: Outputs
    rows: Sequence[LeaderboardRow]
    preferences: Mapping[str, np.ndarray]
    statuses: Mapping[str, Mapping[str, int]]
    costs: Mapping[str, float | None]
    utilities: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    kinds: Sequence[str] = ()
    judges: Sequence[JudgeResult] = ()
    reward_model: object | None = None
    measured: Measures = dataclasses.field(default_factory=Measures)
    stages: Sequence[ReportStage] = ()
    notes: Sequence[str] = ()
    examined: Examined = NOTHING


def evaluation_text(found: Results) -> str:
    """Writes leaderboard.txt: the table, then who agrees with the human and with the true utility."""
    lines = [leaderboard_text(found.rows), *difference_lines(found.measured.differences)]
    if found.judges:
        lines.append("agreement with the human, % of labels; [ ] Wilson score interval, 95 %")
        width = max(len(r.name) for r in found.judges)
        for r in found.judges:
            a = r.agreement
            lines.append(f"  {r.name:<{width}}  {a.agreement:.1f} {interval_text(a.interval)}  n {a.n_total}")
        lines.append("")
    lines += reward_model_lines(found.reward_model)
    lines += ["", *(one.line() for one in found.examined.findings)]
    return "\n".join(lines).rstrip("\n") + "\n"


def reward_model_lines(model: object | None) -> list[str]:
    """Describes the reward model in two lines, each beside the rule "longer output wins"; [] where there is none."""
    if model is None:
        return []
    label = model.human
    if model.clear.n:
        longer = f"longer output wins {model.clear_longer.rate:.1f} %"
        told = f"{_share(model.clear)} of {model.clear.n} ({longer})"
    else:
        told = "there is none among its pairs"
    return [
        f"reward model, order of clear pairs (true utilities at least {model.margin:g} apart): {told}",
        f"reward model, agreement with the human: {label.accuracy:.1f} % {interval_text(label.interval)} of "
        f"{label.n_total} pairs (longer output wins {model.human_longer.rate:.1f} %)",
    ]


def evaluation_summary(found: Results, config: ConfigDict, judge: Judged) -> dict:
    """Returns the content of summary.json: every number with its n; rates in percent, null where there is no value."""
    methods = {}
    for row in found.rows:
        methods[row.method] = {
            "judge": plain_numbers(row.win_rate),
            "judged_by": {"name": row.judge, "id": row.judge_id, "baseline": row.baseline},
            "coverage": row.win_rate.coverage if row.win_rate else None,
            "length_controlled": plain_numbers(row.length_controlled),
            "status": dict(found.statuses.get(row.method, {})),
            "utility": plain_numbers(row.utility),
            "avg_length": row.avg_length,
            "n_outputs": row.n_outputs,
        }
    judged = {r.name: plain_numbers(r.agreement) | {"biases": plain_numbers(r.biases)} for r in found.judges}
    return {
        "title": config.title,
        "version": __version__,
        "seed": config.seed,
        "judge": {"name": judge.name, "judge_ids": list(judge.ids)},
        "baseline": found.outputs.baseline,
        "reference_method": config.reference_method if found.utilities else None,
        "instructions": {"n": len(found.outputs.prompts), "left_out": found.outputs.left_out},
        "methods": methods,
        "differences": plain_numbers(list(found.measured.differences)),
        "length_controlled_against": plain_numbers(found.measured.against),
        "judge_human_agreement": judged,
        "reward_model": plain_numbers(found.reward_model),
        "judging": plain_numbers(dict(found.costs)),
        "stages": {s.name: plain_numbers({"seconds": s.seconds, "summary": s.summary}) for s in found.stages},
        "notes": list(found.notes),
    }


def report(found: Results, config: ConfigDict, judge: Judged) -> Report:
    """Returns the content of the report's page."""
    n, model = len(found.outputs.prompts), found.reward_model
    facts = {
        "judge": judge.shown,
        "baseline": found.outputs.baseline,
        "instructions": f"{n}",
        "seed": f"{config.seed}",
    }
    if model is not None and model.clear.n:
        facts["reward model on clear pairs"] = (
            f"{_share(model.clear)}, n {model.clear.n}; longer output wins {model.clear_longer.rate:.1f} %"
        )
    facts["samples"] = f"the first {N_DRAWN} drawn by the seed, the others where methods differ most"
    facts["made"] = f"{time.strftime('%Y-%m-%d')} by rlhf_jax {__version__}"
    rivals = ", ".join(found.outputs.rivals)
    return Report(
        title=config.title,
        subtitle=f"{rivals} against {found.outputs.baseline}, on the same {n} instructions",
        leaderboard=found.rows,
        facts=facts,
        stages=found.stages,
        judges=[*found.judges, *([model.result] if model else [])],
        calibration=model.human if model else None,
        differences=found.measured.differences,
        against=found.measured.against,
        samples=samples(found, config.seed),
        findings=found.examined.findings,
        looked_for=found.examined.looked_for,
    )


def per_instruction(found: Results, reference: str) -> list[dict]:
    """What was found of every method on every instruction, for comparisons over several evaluations.

    win: 1 where the judge prefers the method's output to the baseline's, 0 the baseline's, 0.5 neither, null without a
    label. utility: the true one, in [0, 1]; true_win: it against that of `reference`, as win. Null where not known.
    """
    rows, base = [], found.utilities.get(reference)
    for method, texts in found.outputs.texts.items():
        labels, utilities = found.preferences.get(method), found.utilities.get(method)
        wins = None if utilities is None or base is None else utility_wins(utilities, base)
        for i, ((instruction, extra), text) in enumerate(zip(found.outputs.prompts, texts, strict=True)):
            label = math.nan if labels is None else float(labels[i])
            row = {"method": method, "instruction": instruction, "input": extra, "output": text}
            row["characters"] = len(text)
            row["win"] = None if math.isnan(label) else label - 1
            row["utility"] = row["true_win"] = None
            if wins is not None:
                row["utility"] = float(utilities[i])
                row["true_win"] = float(wins[i])
            rows.append(row)
    return rows


def write_results(found: Results, config: ConfigDict, judge: Judged, folder: Path) -> None:
    """Writes the leaderboard (.csv, .md, .txt), summary.json, report.html and the rest, and prints it."""
    write_parquet(folder / "per_instruction.parquet", per_instruction(found, config.reference_method))
    # With the baseline's weights, which are zero, the file
    # compares any two models of several such evaluations.
    weights = {name: one.weights for name, one in found.measured.controlled.items()}
    write_files(
        folder,
        {
            "length_weights.csv": weights_csv({found.outputs.baseline: NO_WEIGHTS} | weights),
            "leaderboard.csv": leaderboard_csv(found.rows),
            "leaderboard.md": leaderboard_markdown(found.rows),
            "leaderboard.txt": evaluation_text(found),
            "summary.json": as_json(evaluation_summary(found, config, judge)),
            FINDINGS: findings_json(found.examined.findings, found.examined.looked_for),
        },
    )
    write_report(folder / "report.html", report(found, config, judge))
    for note in found.notes:
        print(note)
    print(f"\n{evaluation_text(found)}\nreport: {(folder / 'report.html').resolve()}", flush=True)


def samples(found: Results, seed: int) -> list[ReportSample]:
    """Chooses a few instructions to show with every method's response: drawn by the seed, then the most different.

    How far methods differ: the range of their utilities, or of the judge's labels where those are not known.
    """
    outputs = found.outputs
    n = len(outputs.prompts)
    spread = _spread(found)
    # The draw does not look at any result, so these samples are not chosen to flatter a method.
    drawn = random.Random(f"samples {seed}").sample(range(n), n)
    ranked = sorted((i for i in range(n) if spread[i] > 0), key=lambda i: (-spread[i], i))
    # Without known families the first word stands for the kind:
    # instructions that begin alike are mostly of one kind.
    kinds = found.kinds or [instruction.lower().split(maxsplit=1)[:1] for instruction, _ in outputs.prompts]
    chosen = _varied(drawn, N_DRAWN, kinds)
    chosen += _varied([i for i in ranked if i not in chosen], N_DIFFERENT, kinds)

    def response(method: str, i: int) -> Response:
        known = found.utilities.get(method)
        return Response(outputs.texts[method][i], None if known is None else float(known[i]))

    return [
        ReportSample(*outputs.prompts[i], {method: response(method, i) for method in outputs.texts})
        for i in chosen
    ]


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Writes texts by name, each whole or not at all. UserError when the folder cannot be written."""
    # errors="replace": a model's output may hold half of a surrogate pair, which cannot be written as UTF-8.
    for name, content in files.items():
        partial = folder / f".{name}.{os.getpid()}.partial"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            partial.write_text(content, encoding="utf-8", errors="replace")
            os.replace(partial, folder / name)
        except OSError as error:
            raise UserError(
                f"workdir: {folder} cannot be written ({error.strerror or error}); use another --workdir"
            ) from error


def as_json(content: object) -> str:
    """Writes indented JSON with a line end; NaN is an error, as most readers of JSON refuse it."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _spread(found: Results) -> np.ndarray:
    """Computes by how much the methods differ on each instruction [N]; a lone one, from the baseline. NaN is 0."""
    known = found.utilities or found.preferences
    values = [known[name] for name in found.outputs.rivals]
    if len(values) == 1:
        # Where only labels are known the baseline has none; 1.5, a draw, is what it would get against itself.
        values.append(known.get(found.outputs.baseline, np.full(len(values[0]), 1.5)))
    return np.nan_to_num(np.ptp(np.array(values), axis=0))


def _varied(order: Sequence[int], count: int, kinds: Sequence[object]) -> list[int]:
    """Takes the first `count` of `order` that are of different kinds, and fills up with the first of the others."""
    seen: list[object] = []
    new, again = [], []
    for i in order:
        (again if kinds[i] in seen else new).append(i)
        seen.append(kinds[i])
        if len(new) == count:
            break
    return (new + again)[:count]


def _share(rate: object) -> str:
    return f"{rate.rate:.1f} % {interval_text(rate.interval)}"


def plain_numbers(value: object) -> object:
    """Converts dataclasses and numbers to what JSON can hold; NaN becomes null."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain_numbers(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain_numbers(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_numbers(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
