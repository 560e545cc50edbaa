"""Asks judges to label responses, or models to write them, and keeps what they said in labels.parquet. Needs no jax."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.annotation.formats import format_named, read_feedback
from rlhf_jax.annotation.formats.rows_of import write_json_rows
from rlhf_jax.annotation.judges.specs import PoolSpec, load_pool
from rlhf_jax.annotation.kinds.asking import Annotations
from rlhf_jax.annotation.kinds.completions import annotate_completions, model_outputs
from rlhf_jax.annotation.kinds.head2head import annotate_head2head, join_line, join_outputs
from rlhf_jax.annotation.kinds.pairs import annotate_pairs, annotate_samples
from rlhf_jax.annotation.kinds.ratings_and_rankings import annotate_rankings, annotate_ratings
from rlhf_jax.annotation.labels.expansion import pairs_of
from rlhf_jax.annotation.labels.judgment_rows import NothingToWriteError
from rlhf_jax.annotation.labels.labels_file import write_labels
from rlhf_jax.annotation.parsing.contracts import COMPLETION, PAIRWISE
from rlhf_jax.data.files.tables import require_columns
from rlhf_jax.data.records.benchmark_rows import rows_to_compare, rows_to_rate
from rlhf_jax.data.records.records import read_table
from rlhf_jax.errors import UserError
from rlhf_jax.feedback import judging
from rlhf_jax.feedback.judging import (
    JudgingLine,
    cancel,
    describe_estimate,
    describe_judges,
    judge_urls,
    kept_answers,
    limits_of,
)
from rlhf_jax.jobs.evaluate.evaluation_results import as_json, write_files
from rlhf_jax.training.checkpoints import lock
from rlhf_jax.training.run import missing_inputs
from rlhf_jax.training.run.missing_inputs import FILE, TABLE, Needs, Read, made_by

SOURCES = ("samples", "pairs", "outputs_2", "ratings", "rankings", "instructions", "feedback")
# The formats that hold pairs; ratings and rankings are expanded for them.
_OF_PAIRS = ("alpaca_farm", "alpaca_eval", "trl", "trl_conversational", "sparse_rankings")


def _check_judges(config: ConfigDict, workdir: str, prefix: str) -> None:
    # Labels that somebody wrote down already need no judge, and no key for one.
    if not config.feedback:
        judging.check_judges(config, workdir, prefix)


NEEDS = Needs(
    reads=(
        *(
            Read(field, TABLE, made_by("generate:pairs", "pairs"))
            for field in ("samples", "pairs", "ratings", "rankings")
        ),
        Read(
            "outputs_1", TABLE, made_by("generate", "outputs/sft"), when=lambda page: bool(page["outputs_2"])
        ),
        Read("outputs_2", TABLE, made_by("generate", "outputs/sft")),
        Read("instructions", TABLE, made_by("make_data", "data")),
        Read("feedback", FILE),
        Read("import_answers", FILE),
    ),
    writes=("cache", "export_answers"),
    also=_check_judges,
    reads_too=lambda page: None if page["feedback"] else judging.judge_ids(page),
)


def run(config: ConfigDict, workdir: str) -> None:
    """Writes WORKDIR/labels.parquet; answers are kept in WORKDIR/answers.sqlite as they come."""
    ranges.check_ranges(config.to_dict())
    folder = Path(workdir)
    # Before the lock is taken: another process here may be waiting for the batches to cancel.
    if config.transport == "cancel" and not config.feedback:
        cancel(config, load_pool(config.judges), folder)
        return
    source = _source(config)
    missing_inputs.check_needs(NEEDS, config, workdir)
    with lock.holding(workdir):
        _run(config, folder, source)


def _run(config: ConfigDict, folder: Path, source: str) -> None:
    write_files(folder, {"config.json": as_json(config.to_dict())})
    if source == "feedback":
        rows = read_feedback(config.feedback, config.feedback_format)
        _write(folder, config, rows, f"read from {config.feedback}")
        return
    pool = load_pool(config.judges)
    with kept_answers(config, folder) as cache, judge_urls(pool) as urls:
        done = _annotate(config, source, pool, cache, urls)
    if config.dry_run:
        print(describe_estimate(done.summary), flush=True)
        return
    statuses = Counter(row["status"] for row in done.rows).most_common()
    _write(folder, config, done.rows, describe_judges(done.summary, statuses))


def _source(config: ConfigDict) -> str:
    named = [name for name in SOURCES if config[name]]
    if len(named) != 1:
        raise UserError(f"{', '.join(SOURCES)}: {len(named)} of them are set; set exactly one source")
    return named[0]


def _annotate(
    config: ConfigDict, source: str, pool: PoolSpec, cache: Path, urls: dict[str, str]
) -> Annotations:
    options = {
        "seed": config.seed,
        "cache_path": cache,
        "max_concurrency": config.max_concurrency,
        "timeout_s": config.timeout_s,
        "limits": limits_of(config),
        "dry_run": config.dry_run,
        "reparse": config.reparse,
        "base_urls": urls,
        "progress": JudgingLine(),
    }
    noise = {"p_label_flip": config.p_label_flip}
    if source == "pairs":
        rows = read_table(config.pairs, made_by=made_by("generate:pairs", "pairs"))
        rows, n_ties = rows_to_compare(rows, config.pairs)
        if n_ties:
            print(f"pairs: {n_ties} rows of Ties are not compared; their score is one of ratings", flush=True)
        return annotate_pairs(rows, pool, **noise, **options)
    if source == "samples":
        rows = read_table(config.samples, made_by=made_by("generate:pairs", "pairs"))
        # Further columns of the samples would go on into the labels.
        needed = ("instruction", "input", "outputs")
        require_columns(rows, needed, config.samples)
        rows = [{name: row.get(name) for name in (*needed, "ended")} for row in rows]
        one_each = config.one_pair_per_prompt
        return annotate_samples(rows, pool, one_pair_per_prompt=one_each, **noise, **options)
    if source == "outputs_2":
        if not config.outputs_1:
            raise UserError(
                "outputs_1: not set; give the baseline's outputs, which outputs_2 is compared with"
            )
        one, two = (
            read_table(config[name], made_by=made_by("generate", "outputs/sft"))
            for name in ("outputs_1", "outputs_2")
        )
        # Joined again when they are judged; here only to say, before any is paid, what has no partner.
        _, counts = join_outputs(one, two, ordered=config.ordered)
        print(f"outputs_1, outputs_2: {join_line(counts)}", flush=True)
        return annotate_head2head(one, two, pool, ordered=config.ordered, **noise, **options)
    rows = read_table(
        config[source],
        made_by=made_by("make_data", "data")
        if source == "instructions"
        else made_by("generate:pairs", "pairs"),
    )
    if source == "instructions":
        most = {name: config[name] for name in ("n_samples", "max_prompt_words", "max_prompt_chars")}
        return annotate_completions(rows, pool, **most, **options)
    rows = rows_to_rate(rows, config[source])
    if source == "ratings":
        return annotate_ratings(rows, pool, **options)
    # Only pairwise judges give labels that can be flipped.
    if {judge.kind for judge in pool.judges} == {PAIRWISE}:
        options |= noise
    return annotate_rankings(rows, pool, **options)


def _write(folder: Path, config: ConfigDict, rows: list[dict], said: str) -> None:
    """Writes labels.parquet, completions as model outputs, and the further formats that are wanted."""
    # First of all: paid labels are kept even if a further format fails.
    write_labels(folder / "labels.parquet", rows, config.to_dict())
    print(f"wrote {folder / 'labels.parquet'}: {len(rows)} rows; {said}", flush=True)
    if rows and rows[0]["kind"] == COMPLETION:
        written = write_json_rows(folder / "outputs.json", model_outputs(rows))
        print(f"wrote {folder / 'outputs.json'}: {written} outputs", flush=True)
    for name in config.formats:
        path = folder / f"feedback.{name}{format_named(name).suffix}"
        try:
            written = format_named(name).write(path, pairs_of(rows) if name in _OF_PAIRS else rows)
        # One format that cannot hold such labels must not stop the others.
        except NothingToWriteError as error:
            print(f"formats: {name}: not written: {error}", flush=True)
            continue
        print(f"wrote {path}: {written} rows", flush=True)
