"""Scores the responses in a file; every response stays, with its score or why it has none.

The score is a reward model's, or a language model's: the mean log-prob of the response's tokens, by which RRHF (Yuan et
al. 2023) asks how well a policy tells better responses from worse ones.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.data.batches import Sequences, batches_by_length, pad
from rlhf_jax.data.chat.chat_encoding import CHAT
from rlhf_jax.data.joining import in_order
from rlhf_jax.data.records.left_out import is_kept
from rlhf_jax.data.records.records import counts_text, write_parquet
from rlhf_jax.data.records.scored_responses import Answered, read_responses
from rlhf_jax.data.templates import Handling, handling_of
from rlhf_jax.data.tokenization import DROP, NO_LIMIT, encode_answers, encode_sft
from rlhf_jax.data.tokens.scored_text import sequences_up_to_score
from rlhf_jax.data.tokens.tokenizer_files import load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.measures.reward_accuracy import accuracy_by_label
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.model import check_embedded, model_scores
from rlhf_jax.models.responses import Batch, plain_row_logprobs
from rlhf_jax.objectives.preference import sequence_logprob
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.mesh import check_batch, gather, host_rows, to_global
from rlhf_jax.training.checkpoints.object_stores import write_text
from rlhf_jax.training.checkpoints.workdir import one_writer, prepare_workdir
from rlhf_jax.training.progress import Progress
from rlhf_jax.training.run import encoded_rows, load_models, reward_models, session
from rlhf_jax.training.run.missing_inputs import TABLE, Needs, Read, made_by, model_reads

NEEDS = Needs(
    reads=(
        Read("data.responses", TABLE, made_by("generate:pairs", "pairs")),
        *model_reads("model.path", made_by("reward_model")),
    )
)
MANY = 4  # different lengths of arrays


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Writes WORKDIR/scores.parquet: the prompt's columns, responses, scores, and reasons where there is no score."""
    mesh = session.start_up(NEEDS, config, workdir)
    prepare_workdir(workdir, config.to_dict())
    # Before gigabytes of weights are read.
    check_batch(config.batch_size, mesh)
    data = config.data
    by_logprob, m = config.model.score_by == "logprob", config.model
    read = logprob_scorer if by_logprob else reward_scorer
    scorer = read(config, mesh, m.path, field="model.path", adapter=m.adapter)
    rows, left_out = read_responses(
        data.responses, made_by=made_by("generate:pairs", "pairs"), chat=data.template == CHAT
    )
    encoded_rows.say(f"data.responses: {len(rows)} rows read from {data.responses}", left_out)
    rows = rows[: data.rows or None]
    flat = [record for row in rows for record in row.records]
    known, reasons = scored_responses(scorer, flat, data)
    if by_logprob:
        known = [None if found is None else found[0] / max(found[1], 1) for found in known]
    scores, why = iter(known), iter(reasons)
    records = [
        row.columns
        | {
            "responses": row.responses,
            "scores": [next(scores) for _ in row.responses],
            "reasons": [next(why) for _ in row.responses],
        }
        for row in rows
    ]
    if startup.is_main():
        write_parquet(Path(workdir) / "scores.parquet", records)
        nulls = sum(reason is not None for reason in reasons)
        print(
            f"wrote {Path(workdir) / 'scores.parquet'}: {len(flat)} responses to {len(rows)} prompts; "
            f"{nulls} of them have no score (reasons says why)",
            flush=True,
        )
        _tell_accuracy(workdir, rows, records)


def _tell_accuracy(workdir: str, rows: list[Answered], records: list[dict]) -> None:
    """Where the file holds labelled pairs: prints how often the scores agree with them, and writes accuracy.json."""
    pairs = [
        (row.label, found["scores"])
        for row, found in zip(rows, records, strict=True)
        if row.label and None not in found["scores"]
    ]
    labelled = sum(bool(row.label) for row in rows)
    if not pairs:
        return
    found = accuracy_by_label(
        [scores[label["better"]] for label, scores in pairs],
        [scores[1 - label["better"]] for label, scores in pairs],
        [label for label, _ in pairs],
    )
    lines = "\n".join(found.lines())
    print(f"{len(pairs)} of {labelled} labelled pairs have two scores: {lines}", flush=True)
    write_text(Path(workdir) / "accuracy.json", json.dumps(found.as_dict(), indent=2) + "\n")


class ResponseScorer(NamedTuple):
    """What scores: its tokenizer, whether it is indifferent to where a response begins, and sequences -> scores.

    Scores are [n], or [n, k] where a response has k numbers.
    """

    tokenizer: Any
    all_turns: bool
    scores: Callable[[Sequences], np.ndarray]


def reward_scorer(
    config: ConfigDict, mesh: Mesh, folder: str, *, field: str, adapter: str = ""
) -> ResponseScorer:
    """A reward model, described; its weights are read when something is to be scored.

    field: of the page, that names the folder. adapter: a PEFT folder that is laid over it.
    """
    reward = reward_models.described(
        folder,
        config.model,
        field=field,
        template=config.data.template,
        how=handling_of(config.data),
        adapter=adapter,
    )

    def scores(found: Sequences) -> np.ndarray:
        found = sequences_up_to_score(found, reward.score_at, reward.behind)
        check_embedded(reward, int(found.tokens.max()))
        whole = reward_models.loaded(reward, config.model, mesh, adapter=adapter)
        score = jax.jit(model_scores)
        return _scores(
            config, mesh, found, lambda x: score(whole.model, x["tokens"], x["lengths"], whole.mean)
        )

    return ResponseScorer(reward.tokenizer, True, scores)


def logprob_scorer(
    config: ConfigDict, mesh: Mesh, folder: str, *, field: str, adapter: str = ""
) -> ResponseScorer:
    """A language model, described, by (the log-prob of a response, its tokens): scores [n, 2]."""
    about = {"tokens": 0, "adapter": adapter}
    path = load_models.resolve_folder(folder)
    tokenizer = load_tokenizer(load_models.tokenizer_folder(path), made_by=made_by("sft"))
    if load_models.describe_model(path, config.model, made_by("sft"), **about).is_scalar:
        raise UserError(
            f"{field}: {folder} is a reward model; "
            + ("use model.score_by=reward" if field == "model.path" else "give a language model")
        )

    def scores(found: Sequences) -> np.ndarray:
        about["tokens"] = len(tokenizer)
        checkpoint, params = load_models.load_model(path, config.model, mesh, made_by("sft"), **about)
        return logprob_sums(config, mesh, checkpoint.config, params, found, lengths=MANY)

    return ResponseScorer(tokenizer, False, scores)


def logprob_sums(
    config: ConfigDict, mesh: Mesh, model: ModelConfig, params: Params, found: Sequences, *, lengths: int = 1
) -> np.ndarray:
    """(The log-prob of every response, how many tokens it has) by a language model that has been read: [n, 2].

    lengths: of arrays, at most. With 1 rows round alike whatever rows they stand beside, so that a policy is at no
    distance from itself.
    """
    params = load_models.merged_params(model, params)
    R = max(int((found.lengths - found.prompt_lengths).max()), 1)

    @jax.jit
    def score(params: Params, batch: Batch) -> jax.Array:
        logprobs_BR, _, mask_BR = plain_row_logprobs(model, params, batch, R, chunk=128)
        return jnp.stack([sequence_logprob(logprobs_BR, mask_BR), mask_BR.sum(axis=1)], axis=1)

    return _scores(config, mesh, found, lambda batch: score(params, batch), lengths)


def scored_responses(
    scorer: ResponseScorer, flat: list[dict | str], data: ConfigDict, name: str = "data.responses"
) -> tuple[list[Any], list[str | None]]:
    """Scores records with `output`: (for each its score or None, None or the reason why it has none).

    flat: a text in place of a record is such a reason. name: what is said to be scored.
    """
    found, reasons = _encoded(flat, scorer.tokenizer, data, name, all_turns=scorer.all_turns)
    # Scores exist only for responses without a reason against them; here None is put in between.
    known = iter(scorer.scores(found).tolist())
    return [None if reason else next(known) for reason in reasons], reasons


def _encoded(
    flat: list[dict | str], tokenizer: Any, data: ConfigDict, name: str, *, all_turns: bool
) -> tuple[Sequences, list[str | None]]:
    """Encodes the responses that can be scored, and returns for each of all None or the reason why it cannot be."""
    reasons = [x if isinstance(x, str) else None for x in flat]
    able = [i for i, reason in enumerate(reasons) if reason is None]
    one_each = [flat[i] for i in able]
    counts: Counter[str] = Counter()
    how, found = handling_of(data), None
    # The encoder would drop too long rows without saying which,
    # so it gets no limit, and lengths are compared below.
    limit = NO_LIMIT if how.too_long == DROP else data.max_length
    if one_each:
        try:
            found, counts, _ = encode_answers(
                one_each, tokenizer, data.template, limit, how, all_turns=all_turns
            )
        except UserError as e:
            counts[str(e)] = len(one_each)
    # It says how many rows it left out, not which. In this rare case each is encoded alone.
    if found is None or len(found) < len(one_each):
        for i in able:
            reasons[i] = _why_not(flat[i], tokenizer, data.template, limit, how)
        able = [i for i in able if reasons[i] is None]
    keep = []
    for place, i in enumerate(able):
        if found.lengths[place] > data.max_length:
            reasons[i] = f"more than data.max_length={data.max_length} tokens"
        else:
            keep.append(place)
    # Responses that could not be read were counted when the file was read.
    told = Counter(reason for x, reason in zip(flat, reasons, strict=True) if isinstance(x, dict) and reason)
    told.update({reason: n for reason, n in counts.items() if is_kept(reason)})
    encoded_rows.say(f"{name}: {len(keep)} of {len(flat)} responses are scored", told)
    if not keep:
        field = "data.max_length" if able else name
        raise UserError(
            f"{field}: none of {len(flat)} responses can be scored ({counts_text(Counter(filter(None, reasons)))})"
        )
    return found.select(np.array(keep)), reasons


def _why_not(record: dict, tokenizer: Any, template: str, limit: int, how: Handling) -> str | None:
    try:
        encode_sft([record], tokenizer, template, limit, how)
    # With one row the error counts one reason: "none of 1 rows can be used (skipped 1: REASON 1)".
    except UserError as e:
        inner = re.search(r"skipped \d+: (.*) \d+\)", str(e))
        return inner[1] if inner else str(e)
    return None


def _scores(
    config: ConfigDict, mesh: Mesh, found: Sequences, score: Callable[[Batch], jax.Array], lengths: int = MANY
) -> np.ndarray:
    """Computes the score of every sequence [n], on every process."""
    B, progress, parts = config.batch_size, Progress(len(found), unit="responses"), []
    for index_B, count, T in batches_by_length(found.lengths, B, most=lengths):
        # Pad id 0 will do: the score is read at places given by the lengths, and attention is causal.
        scores_B = gather(score(to_global(pad(found, index_B, T, 0, host_rows(B, mesh)), mesh)))
        parts.append((index_B[:count], scores_B[:count]))
        progress.update(progress.done + count)
    progress.close()
    return in_order(parts)
