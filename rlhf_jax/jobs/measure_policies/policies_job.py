"""Measures policies side by side: length and ends of responses, reward against KL, perplexity, accuracy on pairs.

Every policy answers the same prompts with the same seed. One model is in memory at a time: each policy samples and
reads its own responses and the pairs, then the reference reads those of all, then the reward model and the other
language model do. Numbers are estimated from these responses; none is a metric of the run that made the policy.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.data.files.tables import whole_file
from rlhf_jax.data.records.records import write_parquet
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.policy_measures import (
    PairNumbers,
    PolicyMeasures,
    ResponseNumbers,
    flat_measures,
    measure_policy,
    policies_text,
)
from rlhf_jax.evaluation.report.plots import plot_reward_against_kl
from rlhf_jax.jobs.measure_policies.policy_answers import (
    Answers,
    acted,
    asked_of_all,
    described_policy,
    read_by_reference,
    text_scores,
)
from rlhf_jax.jobs.score import logprob_scorer, reward_scorer
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.mesh import check_batch
from rlhf_jax.training.checkpoints.workdir import one_writer, prepare_workdir, write_json
from rlhf_jax.training.run import session
from rlhf_jax.training.run.missing_inputs import MODEL, TABLE, WITHIN, Needs, Read, made_by, named_paths


def _folders(text: str) -> tuple[str, ...]:
    return tuple(named_paths(text, "policies").values())


NEEDS = Needs(
    reads=(
        Read("policies", WITHIN, made_by("sft"), paths=_folders),
        Read("reference", MODEL, made_by("sft")),
        Read("reward_model", MODEL, made_by("reward_model")),
        Read("perplexity_model", MODEL, made_by("sft")),
        Read("data.prompts", TABLE, made_by("make_data", "data")),
        Read("data.pairs", TABLE, made_by("annotate", "labels")),
    )
)
ranges.own_rows(
    "measure_policies",
    policies=ranges.TEXT,
    reference=ranges.TEXT,
    reward_model=ranges.TEXT,
    perplexity_model=ranges.TEXT,
    **{
        "data.pairs": ranges.TEXT,
        "data.pair_rows": ranges.ALL_OR_COUNT,
        "data.too_long": ranges.one_of("drop", "cut_prompt"),
    },
)


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Writes measures.csv, measures.json, measures.txt, responses.parquet and plots/reward_against_kl.png."""
    mesh = session.start_up(NEEDS, config, workdir)
    prepare_workdir(workdir, config.to_dict())
    check_batch(config.batch_size, mesh)
    named = named_paths(config.policies, "policies")
    if not named:
        raise UserError("policies: names none; write for example policies=sft=runs/farm/sft/export")
    models = {name: described_policy(config, path, "policies") for name, path in named.items()}
    reference = described_policy(config, config.reference, "reference") if config.reference else None
    # Described before anything is sampled: a folder that cannot be used should not cost an hour first.
    scorers = {
        name: read(config, mesh, folder, field=name)
        for name, folder, read in (
            ("reward_model", config.reward_model, reward_scorer),
            ("perplexity_model", config.perplexity_model, logprob_scorer),
        )
        if folder
    }
    rows, asked = asked_of_all(config, [*models.values(), *([reference] if reference else [])])
    answers, own = {}, {}
    for (name, model), one in zip(models.items(), asked, strict=False):
        answers[name], own[name] = acted(config, mesh, model, one)
    theirs = read_by_reference(config, mesh, reference, asked[-1], models, answers) if reference else {}
    scored = {name: text_scores(config, name, scorer, rows, answers) for name, scorer in scorers.items()}
    numbers = {
        name: _numbers(config, answers[name], own[name], theirs.get(name), _of(scored, name))
        for name in named
    }
    found = [measure_policy(name, *numbers[name]) for name in named]
    if startup.is_main():
        _write(Path(workdir), found, list(_records(rows, answers, numbers)))


def _of(scored: Mapping[str, dict[str, list[Any]]], name: str) -> dict[str, list[Any]]:
    return {scorer: found[name] for scorer, found in scored.items()}


def _numbers(
    config: ConfigDict,
    answers: Answers,
    own: np.ndarray,
    reference: np.ndarray | None,
    scored: dict[str, list[Any]],
) -> tuple[ResponseNumbers, PairNumbers | None]:
    """A policy's responses and pairs as numbers. own, reference: (log-prob, tokens) of answers, chosen, rejected."""
    n = len(answers.tokens)
    rewards = other = tokens = None
    if "reward_model" in scored:
        rewards = np.array([np.nan if x is None else x for x in scored["reward_model"]], np.float64)
    if "perplexity_model" in scored:
        found = np.array([(np.nan, 0) if x is None else x for x in scored["perplexity_model"]], np.float64)
        other, tokens = found[:, 0], found[:, 1].astype(np.int64)
    # Sampled at another temperature they are not the policy's own responses, of which KL is a mean.
    compared = reference is not None and config.temperature == 1 and not np.isnan(reference[:n]).any()
    said = ResponseNumbers(
        np.array([len(x) for x in answers.tokens]),
        np.array([len(x) for x in answers.texts]),
        np.array(answers.ended, bool),
        rewards,
        own[:n, 0],
        reference[:n, 0] if compared else None,
        other,
        tokens,
    )
    if len(own) == n:
        return said, None
    # Chosen ones stand before rejected ones.
    sides = own[n:].reshape(2, -1, 2)
    theirs = None if reference is None else reference[n:, 0].reshape(2, -1).T.astype(np.float64)
    return said, PairNumbers(sides[..., 0].T.astype(np.float64), sides[..., 1].T.astype(np.int64), theirs)


def _records(
    rows: list[dict], answers: Mapping[str, Answers], numbers: Mapping[str, tuple[ResponseNumbers, Any]]
) -> Iterator[dict]:
    """Rows of responses.parquet: every response with what was measured of it."""
    keep = ("instruction", "input", "prompt", "messages")
    for name, one in answers.items():
        said = numbers[name][0]
        columns = {
            "tokens": said.tokens,
            "reward": said.rewards,
            "logprob": said.policy,
            "reference_logprob": said.reference,
            "other_logprob": said.other,
            "other_tokens": said.other_tokens,
        }
        for i, (row, text, ended) in enumerate(zip(rows, one.texts, one.ended, strict=True)):
            told = {key: None if x is None or np.isnan(x[i]) else x[i].item() for key, x in columns.items()}
            yield (
                {key: row[key] for key in keep if key in row}
                | {
                    "output": text,
                    "ended": ended,
                    "generator": name,
                }
                | told
            )


def _write(folder: Path, found: list[PolicyMeasures], records: list[dict]) -> None:
    table = [flat_measures(one) for one in found]
    with whole_file(folder / "measures.csv") as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    write_json(folder / "measures.json", table)
    write_parquet(folder / "responses.parquet", records)
    plot_reward_against_kl(found, folder / "plots/reward_against_kl.png")
    text = policies_text(found)
    with whole_file(folder / "measures.txt") as partial:
        partial.write_text(text + "\n")
    print(f"{text}\nwrote {folder / 'measures.csv'}: {len(found)} policies", flush=True)
