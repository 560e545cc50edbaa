"""Judges compare responses and their labels are written to labels.parquet. Needs no jax."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ml_collections import ConfigDict

from rlhf_jax.annotation.head2head import annotate_head2head
from rlhf_jax.annotation.labels import write_labels
from rlhf_jax.annotation.pairs import Annotations, annotate_pairs
from rlhf_jax.annotation.samples import annotate_samples
from rlhf_jax.annotation.specs import PoolSpec, load_pool
from rlhf_jax.data.records import read_table
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import hints
from rlhf_jax.jobs.evaluation_results import as_json, write_files
from rlhf_jax.jobs.judging import (
    JudgingLine,
    cancel,
    describe,
    describe_estimate,
    judge_urls,
    kept_answers,
    limits_of,
)


def run(config: ConfigDict, workdir: str) -> None:
    """Writes WORKDIR/labels.parquet; answers are kept in WORKDIR/answers.sqlite as they come."""
    folder = Path(workdir)
    write_files(folder, {"config.json": as_json(config.to_dict())})
    pool = load_pool(config.judges)
    if config.transport == "cancel":
        cancel(config, pool, folder)
        return
    with kept_answers(config, folder) as cache, judge_urls(pool) as urls:
        done = _annotate(config, pool, cache, urls)
    if config.dry_run:
        print(describe_estimate(done.summary), flush=True)
        return
    write_labels(folder / "labels.parquet", done.rows, config.to_dict())
    statuses = Counter(row["status"] for row in done.rows).most_common()
    print(
        f"wrote {folder / 'labels.parquet'}: {len(done.rows)} rows; {describe(done.summary, statuses)}",
        flush=True,
    )


def _annotate(config: ConfigDict, pool: PoolSpec, cache: Path, urls: dict[str, str]) -> Annotations:
    options = {
        "seed": config.seed,
        "p_label_flip": config.p_label_flip,
        "cache_path": cache,
        "max_concurrency": config.max_concurrency,
        "timeout_s": config.timeout_s,
        "limits": limits_of(config),
        "dry_run": config.dry_run,
        "base_urls": urls,
        "progress": JudgingLine(),
    }
    sources = [name for name in ("samples", "pairs", "outputs_2") if config[name]]
    if len(sources) != 1:
        raise UserError(
            f"samples, pairs, outputs_2: {len(sources)} of them are set; set exactly one source of outputs"
        )
    if config.pairs:
        return annotate_pairs(read_table(config.pairs, made_by=hints.PAIRS), pool, **options)
    if config.samples:
        rows = read_table(config.samples, ["instruction", "input", "outputs"], made_by=hints.PAIRS)
        rows = [row | {"output": row["outputs"]} for row in rows]
        return annotate_samples(rows, pool, one_pair_per_prompt=config.one_pair_per_prompt, **options)
    if not config.outputs_1:
        raise UserError("outputs_1: not set; give the baseline's outputs, which outputs_2 is compared with")
    one, two = (read_table(config[name], made_by=hints.OUTPUTS) for name in ("outputs_1", "outputs_2"))
    return annotate_head2head(one, two, pool, **options)
