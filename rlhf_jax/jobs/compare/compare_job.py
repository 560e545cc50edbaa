"""Holds a study's results against what others have published of the same experiment: verdicts, a table, figures.

Needs no jax: it reads what other stages have measured, and writes a report. What is compared, and with which published
numbers, stands in a YAML file (rlhf_jax/evaluation/claims/published_claims.py).
"""

from __future__ import annotations

import csv
import io
import random
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from rlhf_jax import __version__, ranges
from rlhf_jax.data.files.tables import read_results
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.claims.published_claims import Publication, read_publication
from rlhf_jax.evaluation.claims.seeded_tables import SeededTable, seeded_table
from rlhf_jax.evaluation.claims.verdicts import VERDICTS, Measured, Verdict, verdicts
from rlhf_jax.evaluation.doctor.examine_results import examine_results
from rlhf_jax.evaluation.report.claim_charts import standalone
from rlhf_jax.evaluation.report.claim_sections import claim_figure
from rlhf_jax.evaluation.report.page import write_report
from rlhf_jax.evaluation.report.report_data import Report, ReportSample, ReportStage, Response
from rlhf_jax.jobs.compare.compare_inputs import by_seed, mean_over_seeds, run_costs
from rlhf_jax.jobs.evaluate.evaluation_inputs import read_stages
from rlhf_jax.jobs.evaluate.evaluation_results import as_json, write_files
from rlhf_jax.training.checkpoints import lock
from rlhf_jax.training.checkpoints.workdir import one_writer
from rlhf_jax.training.run import missing_inputs
from rlhf_jax.training.run.missing_inputs import FILE, NAMED_TABLES, Needs, Read, made_by

NEEDS = Needs(reads=(Read("claims", FILE), Read("results", NAMED_TABLES, made_by("evaluate", "evaluate"))))
ranges.own_rows("compare", claims=ranges.TEXT, results=ranges.TEXT, samples=ranges.whole(0))

_RUNS = "runs"
# The verdicts of several claims.
_MANY = dict(zip(VERDICTS, ("show", "do not show", "cannot be told", "not measured"), strict=True))


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Writes verdicts.txt, verdicts.json, comparison.csv, report.html and figures/*.svg to WORKDIR."""
    ranges.check_ranges(config.to_dict())
    missing_inputs.check_needs(NEEDS, config, workdir)
    folder = Path(workdir)
    with lock.holding(workdir):
        publication = read_publication(config.claims)
        # The table `runs` is no file: it is made of what the runs have logged.
        named = by_seed(config.results, "results", [name for name in publication.tables if name != _RUNS])
        stages, notes = read_stages(config.runs)
        tables = {name: read_seeds(name, publication, files) for name, files in named.items()}
        if _RUNS in publication.tables:
            tables[_RUNS] = table_of(_RUNS, publication, run_costs(stages))
        measured = Measured(publication, tables)
        found = verdicts(measured)
        drawn = samples(publication, named, config.samples, config.seed)
        text = verdicts_text(publication, found)
        write_files(
            folder,
            {
                "config.json": as_json(config.to_dict()),
                "verdicts.txt": text,
                "verdicts.json": as_json([_plain(one) for one in found]),
                "comparison.csv": comparison_csv(measured),
            },
        )
        _write_figures(measured, folder / "figures")
        page = report(measured, found, mean_over_seeds(stages), drawn)
        write_report(folder / "report.html", page)
        print("\n".join([*notes, text, f"report: {(folder / 'report.html').resolve()}"]), flush=True)


def read_seeds(name: str, publication: Publication, files: Mapping[str, str]) -> SeededTable:
    """One table of every seed, from its files."""
    spec = publication.tables[name]
    rows = {seed: read_results(path, (spec.row, *spec.item)) for seed, path in files.items()}
    return table_of(name, publication, rows)


def table_of(name: str, publication: Publication, rows: Mapping[str, list[dict]]) -> SeededTable:
    """One table of every seed, with the columns that the publication asks of it; rows: seed -> them."""
    columns = [column.column for column in publication.columns.values() if column.table == name]
    return seeded_table(name, publication.tables[name], list(dict.fromkeys(columns)), rows)


def verdicts_text(publication: Publication, found: list[Verdict]) -> str:
    """The verdicts for a terminal, two lines each."""
    lines = [f"{publication.title}; {publication.source}", ""]
    for one in found:
        published = f" (published: {one.claim.published})" if one.claim.published else ""
        lines += [f"{one.verdict:14} {one.claim.says}{published}", f"{'':14} {one.evidence}"]
        lines += [f"{'':14} {one.claim.why}"] if one.claim.why and one.verdict != "shows" else []
    return "\n".join(lines) + "\n"


def comparison_csv(measured: Measured) -> str:
    """A line for every row: each column's mean, standard error and interval, and the published numbers."""
    paper, out = measured.publication, io.StringIO()
    names = [f"{column}{part}" for column in paper.columns for part in ("", "_error", "_low", "_high")]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["row", *names, *(f"published_{key}" for key in paper.published)])
    for row in measured.rows():
        cells: list[object] = [row]
        for column in paper.columns:
            one = measured.estimate(row, column)
            cells += ["" if x != x else repr(x) for x in (one.mean, one.error, *one.interval)]
        known = paper.rows[row].published if row in paper.rows else {}
        writer.writerow([*cells, *(known.get(key, "") for key in paper.published)])
    return out.getvalue()


def samples(
    publication: Publication, named: Mapping[str, Mapping[str, str]], count: int, seed: int
) -> list[ReportSample]:
    """What the methods of the first seed answered to a few items, drawn by the seed before any result is looked at."""
    spec = publication.samples
    if not (spec and count and named.get(spec.table)):
        return []
    table = publication.tables[spec.table]
    rows = read_results(next(iter(named[spec.table].values())), (table.row, *table.item, spec.text))
    there = set().union(*rows)
    for column in filter(None, (spec.text, spec.score)):
        if column not in there:
            raise UserError(
                f"results: {spec.table}: no column {column!r}, which samples of the claims names; it has "
                f"{', '.join(sorted(there))}"
            )
    found: dict[tuple[str, ...], dict[str, Response]] = {}
    for row in rows:
        item, name = tuple(_text(row.get(column)) for column in table.item), _text(row[table.row])
        label = publication.rows[name].label if name in publication.rows else name
        score = row.get(spec.score)
        known = isinstance(score, int | float) and score == score
        found.setdefault(item, {})[label] = Response(_text(row.get(spec.text)), score if known else None)
    items = list(found)
    drawn = random.Random(f"samples {seed}").sample(items, min(count, len(items)))
    return [ReportSample(item[0], " ".join(item[1:]), found[item]) for item in drawn]


def report(
    measured: Measured, found: list[Verdict], stages: list[ReportStage], drawn: list[ReportSample]
) -> Report:
    """The content of the report's page."""
    paper = measured.publication
    seeds = sorted({seed for table in measured.tables.values() for seed in table.seeds if seed})
    facts = {"published": paper.source}
    if seeds:
        facts["seeds"] = ", ".join(seeds)
    facts["command"] = shlex.join(["python", "-m", "rlhf_jax.main", *sys.argv[1:]])
    facts["made"] = f"{time.strftime('%Y-%m-%d')} by rlhf_jax {__version__}"
    count = {verdict: sum(one.verdict == verdict for one in found) for verdict in VERDICTS}
    told = ", ".join(f"{n} {verdict if n == 1 else _MANY[verdict]}" for verdict, n in count.items() if n)
    subtitle = f"Of {len(found)} published claims: {told}" if found else ""
    examined = examine_results(stages)
    return Report(
        title=paper.title,
        leaderboard=(),
        subtitle=subtitle,
        facts=facts,
        stages=stages,
        samples=drawn,
        verdicts=found,
        measured=measured,
        findings=examined.findings,
        looked_for=examined.looked_for,
    )


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _write_figures(measured: Measured, folder: Path) -> None:
    for i, chart in enumerate(measured.publication.charts, 1):
        drawn = claim_figure(measured, chart)
        if drawn:
            write_files(folder, {f"{i}_{chart.kind}.svg": standalone(drawn)})


def _plain(one: Verdict) -> Mapping[str, object]:
    claim = one.claim
    return {
        "claim": claim.says,
        "kind": claim.kind,
        "of": list(claim.of),
        "column": claim.column,
        "published": claim.published,
        "verdict": one.verdict,
        "evidence": one.evidence,
    }
