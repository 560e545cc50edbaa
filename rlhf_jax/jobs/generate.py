"""Samples responses to a file of prompts: outputs that are evaluated, and samples that judges compare in pairs.

With `beams` nothing is drawn: the responses are the best that (diverse) beam search finds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.data.batches import Prompts, batches_by_length, bucket, eval_batches, pad_prompts
from rlhf_jax.data.chat.chat_encoding import CHAT
from rlhf_jax.data.records.records import counts_text, read_prompts, write_parquet
from rlhf_jax.data.templates import handling_of
from rlhf_jax.data.tokenization import decode, encode_prompts
from rlhf_jax.data.tokens.special_ids import end_ids, fill_id, without_end
from rlhf_jax.data.tokens.tokenizer_files import load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.mesh import check_batch, gather, host_rows, to_global
from rlhf_jax.sampling.beam_search import Beams, check_beams
from rlhf_jax.sampling.choose import Sampling
from rlhf_jax.sampling.decode import check_finite
from rlhf_jax.sampling.decode_generator import DecodeGenerator
from rlhf_jax.training.checkpoints.workdir import one_writer, prepare_workdir
from rlhf_jax.training.progress import Progress
from rlhf_jax.training.run import encoded_rows, load_models, session
from rlhf_jax.training.run.missing_inputs import TABLE, Needs, Read, made_by, model_reads

NEEDS = Needs(
    reads=(
        Read("data.prompts", TABLE, made_by("make_data", "data")),
        *model_reads("model.path", made_by("sft")),
    )
)


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Writes WORKDIR/outputs.parquet: the prompt's columns, output or outputs, whether each ended, generator.

    Of beam search also beam_score or beam_scores, by which responses are ordered.
    """
    mesh = session.start_up(NEEDS, config, workdir)
    prepare_workdir(workdir, config.to_dict())
    path = load_models.resolve_folder(config.model.path)
    chat = config.data.template == CHAT
    rows, skipped = read_prompts(config.data.prompts, made_by=made_by("make_data", "data"), chat=chat)
    encoded_rows.say(f"data.prompts: {len(rows)} rows read from {config.data.prompts}", skipped)
    rows = rows[: config.data.rows or None]
    tokenizer = load_tokenizer(load_models.tokenizer_folder(path), made_by=made_by("sft"))
    prompts, dropped, kept = encode_prompts(
        rows, tokenizer, config.data.template, config.data.max_prompt_length, handling_of(config.data)
    )
    if dropped:
        encoded_rows.say(f"data.prompts: {len(prompts)} prompts", dropped)
    samples = _sample(config, path, mesh, prompts, tokenizer)
    # All processes hold all samples; only one may write the file.
    if startup.is_main():
        write_parquet(Path(workdir) / "outputs.parquet", _records(config, [rows[i] for i in kept], samples))
        cut = sum(not sample.ended for group in samples for sample in group)
        print(
            f"wrote {Path(workdir) / 'outputs.parquet'}: {len(prompts)} prompts x {config.samples}; "
            f"{cut} responses did not end within max_new_tokens={config.max_new_tokens}",
            flush=True,
        )


def sample_prompts(config: ConfigDict, workdir: str, prompts: Sequence[Mapping]) -> list[list[str]]:
    """`samples` responses to each of these prompts, which are records in memory; writes nothing.

    Raises UserError where one of them cannot be used: every prompt has its answers at its own place.
    """
    mesh = session.start_up(NEEDS, config, workdir)
    path = load_models.resolve_folder(config.model.path)
    rows, skipped = read_prompts(prompts, unique=False, chat=config.data.template == CHAT)
    tokenizer = load_tokenizer(load_models.tokenizer_folder(path), made_by=made_by("sft"))
    encoded, dropped, _ = encode_prompts(
        rows, tokenizer, config.data.template, config.data.max_prompt_length, handling_of(config.data)
    )
    if len(encoded) < len(prompts):
        left_out = counts_text(Counter(skipped) + dropped)
        raise UserError(f"prompts: {len(encoded)} of {len(prompts)} can be used ({left_out})")
    # No larger batch than there are responses: a handful should not wait for an array of hundreds.
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    # The batch is split over these devices, so its size must stay a multiple of their number.
    each, ways = (config.beams, ways * config.beams) if config.beams else (config.samples, ways)
    config.batch_size = min(config.batch_size, -(-len(encoded) * each // ways) * ways)
    return [[sample.text for sample in group] for group in _sample(config, path, mesh, encoded, tokenizer)]


class Sample(NamedTuple):
    """A response: its text, whether the model ended it (or max_new_tokens did), and its score in beam search."""

    text: str
    ended: bool
    beam_score: float | None = None


def _sample(config: ConfigDict, path: str, mesh: Mesh, prompts: Prompts, tokenizer) -> list[list[Sample]]:
    """Samples `config.samples` responses to every prompt; every process returns all of them."""
    if config.samples < 1:
        raise UserError(f"samples: {config.samples}; use 1 or more")
    check_batch(config.batch_size, mesh)
    if config.beams:
        _check_beams(config, mesh)
    checkpoint, params = load_models.load_model(
        path,
        config.model,
        mesh,
        made_by("sft"),
        tokens=len(tokenizer),
        adapter=config.model.adapter,
    )
    if checkpoint.is_scalar:
        raise UserError(
            f"model.path: {config.model.path} is a reward model; give a language model to sample from"
        )
    sampling = Sampling(config.temperature, config.top_p, config.top_k)
    generator = open_generator(config, path, mesh, checkpoint.config, tokenizer, sampling)
    generator.load(params)
    samples = (_searched if config.beams else _drawn)(config, generator, path, mesh, prompts, tokenizer)
    generator.close()
    return samples


def open_generator(
    config: ConfigDict, path: str, mesh: Mesh, model: ModelConfig, tokenizer: Any, sampling: Sampling
) -> DecodeGenerator:
    """The sampling engine of a model folder, which stops where its training text ends and where its makers say."""
    return DecodeGenerator(
        model,
        mesh,
        max_new_tokens=config.max_new_tokens,
        sampling=sampling,
        end_ids=end_ids(
            tokenizer, load_models.tokenizer_folder(path), config.data.template, handling_of(config.data)
        ),
        pad_id=fill_id(tokenizer),
        dtype=config.model.dtype,
    )


def _check_beams(config: ConfigDict, mesh: Mesh) -> None:
    """Raises UserError for a beam search that cannot be."""
    check_beams(config.beams, config.beam_groups)
    if config.samples > config.beams:
        raise UserError(
            f"samples: {config.samples} of beams={config.beams}; use at most as many as there are beams"
        )
    if config.batch_size % config.beams:
        raise UserError(
            f"batch_size: {config.batch_size} responses at a time; use a multiple of beams={config.beams}"
        )
    check_batch(config.batch_size // config.beams, mesh, field="batch_size // beams")


def _searched(
    config: ConfigDict, generator: DecodeGenerator, path: str, mesh: Mesh, prompts: Prompts, tokenizer
) -> list[list[Sample]]:
    """The best `config.samples` of `config.beams` responses to every prompt, the best first."""
    how = Beams(config.beams, config.beam_groups, config.diversity_penalty)
    # As many responses at a time as are sampled: a prompt takes its beams' share of the memory.
    B, P = config.batch_size // config.beams, bucket(int(prompts.lengths.max()))
    samples: list[list[Sample]] = []
    progress = Progress(len(prompts), unit="prompts")
    for index_B, weight_B in eval_batches(len(prompts), B):
        arrays = to_global(
            pad_prompts(prompts, index_B, P, fill_id(tokenizer), rows=host_rows(B, mesh)), mesh
        )
        found = generator.search(arrays["tokens"], arrays["lengths"], how, returned=config.samples)
        *responses, scores_BN = gather((found.tokens_BNR, found.lengths_BN, found.ended_BN, found.scores_BN))
        check_finite(scores_BN, path)
        # The last batch is filled up with copies of the last prompt, at weight 0.
        for *group, _ in zip(*responses, scores_BN, weight_B[weight_B > 0], strict=False):
            samples.append(
                [
                    Sample(decode(tokenizer, without_end(tokens_R[:n], ended)), bool(ended), float(score))
                    for tokens_R, n, ended, score in zip(*group, strict=True)
                ]
            )
        progress.update(len(samples))
    progress.close()
    return samples


def _drawn(
    config: ConfigDict, generator: DecodeGenerator, path: str, mesh: Mesh, prompts: Prompts, tokenizer
) -> list[list[Sample]]:
    """`config.samples` samples of every prompt."""
    samples: list[list[Sample]] = [[] for _ in range(len(prompts))]
    drawn = drawn_tokens(config, generator, path, mesh, prompts, fill_id(tokenizer), samples=config.samples)
    for response, (tokens_R, ended) in enumerate(drawn):
        text = decode(tokenizer, without_end(tokens_R, ended))
        samples[response // config.samples].append(Sample(text, ended))
    return samples


def drawn_tokens(
    config: ConfigDict,
    generator: DecodeGenerator,
    path: str,
    mesh: Mesh,
    prompts: Prompts,
    pad_id: int,
    *,
    samples: int = 1,
) -> Iterator[tuple[np.ndarray, bool]]:
    """Yields (tokens, whether they end) of every response, in order; response r answers prompt r // samples."""
    # One key for all batches: each response draws from its own number in `rows`, so that neither the batch
    # size nor the number of devices changes a sample.
    key = jax.random.key(config.seed)
    total = len(prompts) * samples
    progress, drawn = Progress(total, unit="responses"), {}
    for index_B, batch in _batches(prompts, samples, config.batch_size, mesh, pad_id):
        sampled = generator.generate(batch["tokens"], batch["lengths"], batch["rows"], key)
        *found, logprobs_BR = gather(
            (sampled.tokens_BR, sampled.lengths_B, sampled.ended_B, sampled.logprobs_BR)
        )
        # A policy with NaN in its logits still samples tokens; here that becomes an error.
        check_finite(logprobs_BR, path)
        # Not strict: in the last batch copies of its last response follow, which `index_B` does not number.
        for response, tokens_R, length, ended in zip(index_B, *found, strict=False):
            drawn[int(response)] = (tokens_R[:length].copy(), bool(ended))
        progress.update(len(drawn))
    progress.close()
    yield from (drawn[response] for response in range(total))


def _batches(
    prompts: Prompts, samples: int, B: int, mesh: Mesh, pad_id: int
) -> Iterator[tuple[np.ndarray, dict]]:
    """Yields (numbers of the batch's responses, its arrays on the mesh); response r answers prompt r // samples."""
    lengths, mine = np.repeat(prompts.lengths, samples), host_rows(B, mesh)
    # The decode loop is compiled for every prompt length, and takes longer to compile than scoring.
    for index_B, count, P in batches_by_length(lengths, B, 16, every=16):
        arrays = pad_prompts(prompts, index_B // samples, P, pad_id, rows=mine)
        arrays["rows"] = index_B[mine].astype(np.int32)
        yield index_B[:count], to_global(arrays, mesh)


def _records(config: ConfigDict, rows: list[dict], samples: list[list[Sample]]) -> list[dict]:
    answers = [
        {"output": s[0].text, "ended": s[0].ended} | ({"beam_score": s[0].beam_score} if config.beams else {})
        if config.samples == 1
        else {"outputs": [x.text for x in s], "ended": [x.ended for x in s]}
        | ({"beam_scores": [x.beam_score for x in s]} if config.beams else {})
        for s in samples
    ]
    keep = ("instruction", "input", "prompt", "messages")
    return [
        {k: row[k] for k in keep if k in row} | answer | {"generator": config.model.name}
        for row, answer in zip(rows, answers, strict=True)
    ]
