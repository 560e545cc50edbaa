"""Scores responses with a reward model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.annotation.samples import ended_of
from rlhf_jax.data.batches import bucket, eval_batches, pad
from rlhf_jax.data.records import describe, read_table, write_parquet
from rlhf_jax.data.tokenization import Sequences, encode_sft, load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import hints, loading, setup
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.arrays import check_batch, gather, host_rows, to_global
from rlhf_jax.rollout.rewards import model_scores
from rlhf_jax.training.progress import Progress
from rlhf_jax.training.workdir import one_writer, prepare


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Writes WORKDIR/scores.parquet: the prompt's columns, responses and scores."""
    mesh = setup.start(config, workdir)
    prepare(workdir, config.to_dict())
    path = loading.resolve(config.model.path)
    rows = read_table(config.data.responses, made_by=hints.PAIRS)
    responses = [_responses(row, i, config.data.responses) for i, row in enumerate(rows)]
    tokenizer = load_tokenizer(loading.tokenizer_folder(path), made_by=hints.REWARD_MODEL)
    flat = [
        {**row, "output": text, "ended": ended}
        for i, (row, texts) in enumerate(zip(rows, responses, strict=True))
        for text, ended in zip(texts, ended_of(row, len(texts), i), strict=True)
    ]
    found, counts = encode_sft(flat, tokenizer, config.data.template, config.data.max_length)
    if len(found) < len(flat):
        raise UserError(f"data.max_length: {describe(counts)}; raise it above {config.data.max_length}")
    if counts and startup.is_main():
        print(f"responses: {describe(counts)}", flush=True)
    scores = iter(_scores(config, path, mesh, found, tokenizer).tolist())
    keep = ("instruction", "input", "prompt", "messages", "ended", "generator")
    records = [
        {name: row[name] for name in keep if name in row}
        | {"responses": texts, "scores": [next(scores) for _ in texts]}
        for row, texts in zip(rows, responses, strict=True)
    ]
    if startup.is_main():
        write_parquet(Path(workdir) / "scores.parquet", records)
        print(
            f"wrote {Path(workdir) / 'scores.parquet'}: {len(flat)} responses to {len(rows)} prompts",
            flush=True,
        )


def _scores(config: ConfigDict, path: str, mesh: Mesh, found: Sequences, tokenizer: Any) -> np.ndarray:
    """The reward of every sequence [n]."""
    B = config.batch_size
    check_batch(B, mesh)
    checkpoint, params = loading.load_model(
        path,
        config.model,
        mesh,
        hints.REWARD_MODEL,
        tokens=len(tokenizer),
        adapter=config.model.adapter,
    )
    if not checkpoint.is_scalar:
        raise UserError(
            f"model.path: {config.model.path} is a language model; give what reward_model exported"
        )
    score = jax.jit(
        lambda p, x: model_scores(checkpoint.config, p, x["tokens"], x["lengths"], checkpoint.reward_mean)
    )
    T, progress = bucket(int(found.lengths.max()), 8), Progress(len(found), unit="responses")
    parts = []
    for index_B, _ in eval_batches(len(found), B):
        batch = to_global(pad(found, index_B, T, tokenizer.pad_token_id, host_rows(B, mesh)), mesh)
        parts.append(gather(score(params, batch)))
        progress.update(min(len(parts) * B, len(found)))
    progress.close()
    return np.concatenate(parts)[: len(found)]


def _responses(row: dict, i: int, source: str) -> list[str]:
    found = row.get("outputs", row.get("output"))
    if isinstance(found, str):
        return [found]
    if not found or not all(isinstance(text, str) for text in found):
        raise UserError(f"{source}: row {i} has no text in output or outputs; it has {', '.join(row)}")
    return list(found)
