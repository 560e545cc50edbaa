"""Scores responses with a reward model."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.data.batches import bucket, eval_batches, pad
from rlhf_jax.data.chat import CHAT
from rlhf_jax.data.handling import Handling, handling_of
from rlhf_jax.data.limits import DROP
from rlhf_jax.data.records import describe, write_parquet
from rlhf_jax.data.responses import read_responses
from rlhf_jax.data.scored_text import sequences_up_to_score
from rlhf_jax.data.tokenization import NO_LIMIT, Sequences, encode_sft
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import hints, inputs, rewarding, setup
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.arrays import check_batch, gather, host_rows, to_global
from rlhf_jax.rollout.rewards import RewardModel, check_embedded, model_scores
from rlhf_jax.training.progress import Progress
from rlhf_jax.training.workdir import one_writer, prepare


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Writes WORKDIR/scores.parquet: the prompt's columns, responses, scores, and reasons where there is no score."""
    mesh = setup.start(config, workdir)
    prepare(workdir, config.to_dict())
    data = config.data
    reward = rewarding.described(
        config.model.path,
        config.model,
        field="model.path",
        template=data.template,
        how=handling_of(data),
        adapter=config.model.adapter,
    )
    rows, left_out = read_responses(data.responses, made_by=hints.PAIRS, chat=data.template == CHAT)
    inputs.say(f"data.responses: {len(rows)} rows read from {data.responses}", left_out)
    flat = [record for row in rows for record in row.records]
    found, reasons = _encoded(flat, reward.tokenizer, data)
    found = sequences_up_to_score(found, reward.score_at, reward.behind)
    known = iter(_scores(config, reward, mesh, found).tolist())
    scores = iter([None if reason else next(known) for reason in reasons])
    why = iter(reasons)
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


def _encoded(flat: list[dict | str], tokenizer: Any, data: ConfigDict) -> tuple[Sequences, list[str | None]]:
    """The responses that can be scored, and for each of all None or the reason why it cannot be."""
    reasons = [x if isinstance(x, str) else None for x in flat]
    able = [i for i, reason in enumerate(reasons) if reason is None]
    one_each = [flat[i] for i in able]
    counts: Counter[str] = Counter()
    how, found = handling_of(data), None
    # Those that are to be left out are told from the others by their lengths, below.
    limit = NO_LIMIT if how.too_long == DROP else data.max_length
    if one_each:
        try:
            found, counts = encode_sft(one_each, tokenizer, data.template, limit, how)
        except UserError as e:
            counts[str(e)] = len(one_each)
    if found is None or len(found) < len(
        one_each
    ):  # Which of them cannot be encoded is found out one by one.
        for i in able:
            reasons[i] = _why_not(flat[i], tokenizer, data.template, limit, how)
        able = [i for i in able if reasons[i] is None]
    keep = []
    for place, i in enumerate(able):
        if found.lengths[place] > data.max_length:
            reasons[i] = f"more than data.max_length={data.max_length} tokens"
        else:
            keep.append(place)
    told = Counter(reason for x, reason in zip(flat, reasons, strict=True) if isinstance(x, dict) and reason)
    told.update({reason: n for reason, n in counts.items() if "row kept" in reason})
    inputs.say(f"data.responses: {len(keep)} of {len(flat)} responses are scored", told)
    if not keep:
        field = "data.max_length" if able else "data.responses"
        raise UserError(
            f"{field}: none of {len(flat)} responses can be scored ({describe(Counter(filter(None, reasons)))})"
        )
    return found.select(np.array(keep)), reasons


def _why_not(record: dict, tokenizer: Any, template: str, limit: int, how: Handling) -> str | None:
    try:
        encode_sft([record], tokenizer, template, limit, how)
    except UserError as e:
        inner = re.search(r"skipped \d+: (.*) \d+\)", str(e))
        return inner[1] if inner else str(e)
    return None


def _scores(config: ConfigDict, reward: RewardModel, mesh: Mesh, found: Sequences) -> np.ndarray:
    """The reward of every sequence [n]."""
    B = config.batch_size
    check_batch(B, mesh)
    check_embedded(reward, int(found.tokens.max()))
    reward = rewarding.loaded(reward, config.model, mesh, adapter=config.model.adapter)
    score = jax.jit(model_scores)
    T, progress = bucket(int(found.lengths.max()), 8), Progress(len(found), unit="responses")
    parts = []
    for index_B, _ in eval_batches(len(found), B):
        batch = to_global(pad(found, index_B, T, 0, host_rows(B, mesh)), mesh)
        parts.append(gather(score(reward.model, batch["tokens"], batch["lengths"], reward.mean)))
        progress.update(min(len(parts) * B, len(found)))
    progress.close()
    return np.concatenate(parts)[: len(found)]
