"""Samples responses to a file of prompts: the pairs that annotators compare, and the outputs that are evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.data.batches import bucket, eval_batches, pad_prompts
from rlhf_jax.data.chat import CHAT
from rlhf_jax.data.handling import handling_of
from rlhf_jax.data.records import read_prompts, write_parquet
from rlhf_jax.data.special_ids import end_ids, fill_id, without_end
from rlhf_jax.data.tokenization import Prompts, decode, encode_prompts
from rlhf_jax.data.tokenizer_files import load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import hints, inputs, loading, setup
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.arrays import check_batch, gather, host_rows, to_global
from rlhf_jax.rollout.generator import DecodeGenerator, check_finite
from rlhf_jax.sampling.choose import Sampling
from rlhf_jax.training.progress import Progress
from rlhf_jax.training.workdir import one_writer, prepare


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Writes WORKDIR/outputs.parquet: the prompt's columns, output or outputs, whether each ended, generator."""
    mesh = setup.start(config, workdir)
    prepare(workdir, config.to_dict())
    path = loading.resolve(config.model.path)
    chat = config.data.template == CHAT
    rows, skipped = read_prompts(config.data.prompts, made_by=hints.FARM, chat=chat)
    inputs.say(f"data.prompts: {len(rows)} rows read from {config.data.prompts}", skipped)
    rows = rows[: config.data.rows or None]
    tokenizer = load_tokenizer(loading.tokenizer_folder(path), made_by=hints.SFT)
    prompts, dropped, kept = encode_prompts(
        rows, tokenizer, config.data.template, config.data.max_prompt_length, handling_of(config.data)
    )
    if dropped:
        inputs.say(f"data.prompts: {len(prompts)} prompts", dropped)
    samples = _sample(config, path, mesh, prompts, tokenizer)
    if startup.is_main():
        write_parquet(Path(workdir) / "outputs.parquet", _records(config, [rows[i] for i in kept], samples))
        cut = sum(not sample.ended for group in samples for sample in group)
        print(
            f"wrote {Path(workdir) / 'outputs.parquet'}: {len(prompts)} prompts x {config.samples}; "
            f"{cut} responses did not end within max_new_tokens={config.max_new_tokens}",
            flush=True,
        )


class Sample(NamedTuple):
    """A response: its text, and whether the model ended it (or max_new_tokens did)."""

    text: str
    ended: bool


def _sample(config: ConfigDict, path: str, mesh: Mesh, prompts: Prompts, tokenizer) -> list[list[Sample]]:
    """`samples` responses per prompt, on every process."""
    if config.samples < 1:
        raise UserError(f"samples: {config.samples}; use 1 or more")
    check_batch(config.batch_size, mesh)
    checkpoint, params = loading.load_model(
        path,
        config.model,
        mesh,
        hints.SFT,
        tokens=len(tokenizer),
        adapter=config.model.adapter,
    )
    if checkpoint.is_scalar:
        raise UserError(
            f"model.path: {config.model.path} is a reward model; give a language model to sample from"
        )
    generator = DecodeGenerator(
        checkpoint.config,
        mesh,
        max_new_tokens=config.max_new_tokens,
        sampling=Sampling(config.temperature, config.top_p, config.top_k),
        end_ids=end_ids(
            tokenizer, loading.tokenizer_folder(path), config.data.template, handling_of(config.data)
        ),
        pad_id=fill_id(tokenizer),
        dtype=config.model.dtype,
    )
    generator.load(params)
    key = jax.random.key(config.seed)
    samples: list[list[Sample]] = [[] for _ in range(len(prompts))]
    total = len(prompts) * config.samples
    progress = Progress(total, unit="responses")
    for index_B, batch in _batches(prompts, config, mesh, fill_id(tokenizer)):
        sampled = generator.generate(batch["tokens"], batch["lengths"], batch["rows"], key)
        *found, logprobs_BR = gather(
            (sampled.tokens_BR, sampled.lengths_B, sampled.ended_B, sampled.logprobs_BR)
        )
        check_finite(logprobs_BR, path)
        for row, tokens_R, length, ended in zip(index_B, *found, strict=False):
            text = decode(tokenizer, without_end(tokens_R[:length], ended))
            samples[row // config.samples].append(Sample(text, bool(ended)))
        progress.update(min(len(index_B) + progress.done, total))
    progress.close()
    generator.close()
    return samples


def _batches(
    prompts: Prompts, config: ConfigDict, mesh: Mesh, pad_id: int
) -> Iterator[tuple[np.ndarray, dict]]:
    """(global response numbers of the batch, this process's arrays as global ones); response r answers r // samples."""
    P = bucket(int(prompts.lengths.max()))
    total = len(prompts) * config.samples
    mine = host_rows(config.batch_size, mesh)
    for index_B, _ in eval_batches(total, config.batch_size):
        arrays = pad_prompts(prompts, index_B // config.samples, P, pad_id, rows=mine)
        arrays["rows"] = index_B[mine].astype(np.int32)
        yield np.unique(index_B), to_global(arrays, mesh)


def _records(config: ConfigDict, rows: list[dict], samples: list[list[Sample]]) -> list[dict]:
    answers = [
        {"output": s[0].text, "ended": s[0].ended}
        if config.samples == 1
        else {"outputs": [x.text for x in s], "ended": [x.ended for x in s]}
        for s in samples
    ]
    keep = ("instruction", "input", "prompt", "messages")
    return [
        {k: row[k] for k in keep if k in row} | answer | {"generator": config.model.name}
        for row, answer in zip(rows, answers, strict=True)
    ]
