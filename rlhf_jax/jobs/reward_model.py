"""Reward model: Bradley-Terry on pairwise labels."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.data.chat import CHAT
from rlhf_jax.data.handling import handling_of
from rlhf_jax.data.records import describe, read_instructions
from rlhf_jax.data.scored_text import EOS, Closing, closing, default_score_at, sequences_up_to_score
from rlhf_jax.data.special_ids import end_ids, fill_id
from rlhf_jax.data.tokenization import NO_LIMIT, Pairs, Sequences, encode_sft
from rlhf_jax.data.tokenizer_files import load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import adapters, fit, hints, inputs, loading, losses, rewarding, setup
from rlhf_jax.jobs.reward_pad import exported_tokenizer
from rlhf_jax.jobs.rows import rows_of
from rlhf_jax.models.decoder import Params, reward_from_language
from rlhf_jax.models.huggingface import Checkpoint
from rlhf_jax.models.lora import Lora
from rlhf_jax.models.model import Model
from rlhf_jax.parallel import startup
from rlhf_jax.training.workdir import one_writer, prepare


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Trains and writes WORKDIR/export, with the mean score of demonstrations beside the weights."""
    mesh = setup.start(config, workdir)
    prepare(workdir, config.to_dict())
    lora = adapters.settings(config.lora)
    init = loading.resolve(config.model.init)
    tokenizer_from = loading.tokenizer_folder(init)
    tokenizer = load_tokenizer(tokenizer_from, made_by=hints.SFT)
    inputs.keep_date(config, workdir, tokenizer)
    split = inputs.pairs(config.data, tokenizer, config.seed, hints.LABELS)
    _longer_wins(split.eval)
    demonstrations = _demonstrations(config, tokenizer)
    found = loading.describe_model(
        init, config.model, hints.SFT, tokens=len(tokenizer), adapter=config.model.adapter
    )
    score_at = _score_at(config, found)
    behind = closing(tokenizer, config.data.template, score_at, handling_of(config.data))
    split = split._replace(
        train=_read(split.train, score_at, behind), eval=_read(split.eval, score_at, behind)
    )
    if demonstrations is not None:
        demonstrations = sequences_up_to_score(demonstrations, score_at, behind)
    model, base = adapters.model_of(found, lora), loading.base_of(init)
    kept = (
        {} if demonstrations is None else {rewarding.DEMONSTRATIONS: partial(rewarding.keep, demonstrations)}
    )
    setup.describe(
        workdir,
        model,
        tokenizer,
        tokenizer_from,
        scalar=True,
        adapter=lora,
        base=base,
        score_at=score_at,
        beside=kept,
    )
    pad_id = fill_id(tokenizer)
    train, held, _ = rows_of(split, config.data, pad_id, config.seed)
    state = fit.offline(
        config,
        workdir,
        mesh,
        model,
        lambda shape, _: losses.reward_model(shape),
        lambda: adapters.start(
            model, _params(config, mesh, init, model.vocab_size, lora), lora, mesh, config.seed
        ),
        scalar=True,
        rows=train.count,
        make_batch=train.make,
        tokens_of=train.tokens,
        eval_rows=held.count,
        make_eval_batch=held.make,
        inputs=inputs.digests(
            config.data.train, config.data.eval, *loading.sources(init, config.model.adapter)
        ),
        show=("loss", "rewards/accuracies", "eval/rewards/accuracies"),
    )
    mean = 0.0
    if demonstrations is not None:
        mean = rewarding.mean_score(Model(model, state.params), demonstrations, config.batch_size, mesh)
    ends = end_ids(tokenizer, tokenizer_from, config.data.template, handling_of(config.data))
    with exported_tokenizer(tokenizer, tokenizer_from, ends, model.vocab_size) as (tokenizer, tokenizer_from):
        about = {"reward_mean": mean, "score_at": score_at, "base": base}
        setup.export(workdir, model, state.params, tokenizer, tokenizer_from, **about)


def _score_at(config: ConfigDict, init: Checkpoint) -> str:
    """At which token the score is trained: where init's makers read theirs, if it is a reward model already."""
    published = init.score_at or default_score_at(config.data.template)
    found = config.model.score_at or (published if init.is_scalar else EOS)
    if found != EOS and startup.is_main():
        print(f"reward model: its score stands at the token {found}", flush=True)
    return found


def _read(found: Pairs, score_at: str, behind: Closing) -> Pairs:
    """Both sides up to the token at which their scores are read."""
    return Pairs(*(sequences_up_to_score(side, score_at, behind) for side in found))


def _params(config: ConfigDict, mesh: Mesh, init: str, tokens: int, lora: Lora) -> Params:
    about = {"adapter": config.model.adapter, "base_dtype": lora.base_dtype}
    checkpoint, params = loading.load_model(init, config.model, mesh, hints.SFT, tokens=tokens, **about)
    if checkpoint.is_scalar:
        return params
    return reward_from_language(checkpoint.config, params, jax.random.key(config.seed))


def _demonstrations(config: ConfigDict, tokenizer: Any) -> Sequences | None:
    """What `center_on` names, read before training: a file that is missing should not cost a run."""
    if not config.center_on:
        return None
    chat = config.data.template == CHAT
    rows, skipped = read_instructions(config.center_on, made_by=hints.FARM, chat=chat)
    inputs.say(f"center_on: {len(rows)} rows read from {config.center_on}", skipped)
    rows = inputs.draw(rows, config.center_rows, np.random.default_rng(config.seed))
    how = dataclasses.replace(handling_of(config.data), not_ended="drop")
    found, counts = encode_sft(rows, tokenizer, config.data.template, NO_LIMIT, how)
    # What was cut would be scored in mid-sentence, which nobody who reads the mean expects.
    whole = np.flatnonzero(found.lengths <= config.data.max_length)
    counts["demonstration too long"] = len(found) - len(whole)
    if not len(whole):
        raise UserError(
            f"center_on: none of {len(rows)} demonstrations fits data.max_length={config.data.max_length} "
            f"({describe(+counts)}); raise it or set another file"
        )
    inputs.say(f"center_on: {len(whole)} demonstrations", +counts)
    return found.select(whole)


def _longer_wins(held: Pairs) -> None:
    """Says what a reward model has to beat: how often the longer response of a held-out pair is the chosen one."""
    if len(held) and startup.is_main():
        chosen, rejected = map(inputs.response_lengths, held)
        share = np.mean((chosen > rejected) + 0.5 * (chosen == rejected))
        print(
            f"held-out pairs: the longer output is the chosen one in {share:.1%} of {len(held)}", flush=True
        )
