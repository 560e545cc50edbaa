"""A reward model of pairwise labels: one number for a response, learnt from which of two was preferred.

The likelihood of a preference is that of Bradley and Terry (1952), sigmoid(r(chosen) - r(rejected)), and the loss of
a pair is -log of it (Ouyang et al. 2022, eq. 1). The model is a language model's trunk with one linear head, read at
one token of the text (`model.score_at`). Only differences are learnt, so the mean score of demonstrations is measured
at the end and goes with the weights: readers subtract it, and a score of 0 means "as good as a demonstration". A row
is one labelled pair.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rlhf_jax.data.batches import Pairs, Sequences
from rlhf_jax.data.chat.chat_encoding import CHAT
from rlhf_jax.data.records.records import counts_text, read_instructions
from rlhf_jax.data.templates import handling_of
from rlhf_jax.data.tokenization import NO_LIMIT, encode_sft
from rlhf_jax.data.tokens.scored_text import EOS, closing, default_score_at, sequences_up_to_score
from rlhf_jax.data.tokens.special_ids import fill_id
from rlhf_jax.errors import UserError
from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params, reward_from_language
from rlhf_jax.models.model import Model
from rlhf_jax.models.response_pairs import pair_scores, pair_weight
from rlhf_jax.models.responses import Batch
from rlhf_jax.objectives.preference import bradley_terry
from rlhf_jax.objectives.reduce import Mean
from rlhf_jax.parallel import startup
from rlhf_jax.training.checkpoints.workdir import one_writer
from rlhf_jax.training.loop.step import LossFn
from rlhf_jax.training.run import encoded_rows, offline, reward_models
from rlhf_jax.training.run.missing_inputs import TABLE, Needs, Read, made_by, model_reads, train_and_eval
from rlhf_jax.training.run.session import (
    Network,
    Session,
    export_model,
    network_of,
    open_session,
    write_model_folder,
)

SHOW = ("loss", "rewards/accuracies", "eval/rewards/accuracies")


NEEDS = Needs(
    reads=(
        *train_and_eval(made_by("annotate", "labels")),
        *model_reads("model.init", made_by("sft")),
        Read("center_on", TABLE, made_by("make_data", "data")),
    ),
    remote=True,
)


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Trains on `data.train` from `model.init`; writes WORKDIR/export, with the mean score of demonstrations."""
    session = open_session(NEEDS, config, workdir, folder=config.model.init, made_by=made_by("sft"))
    pairs = encoded_rows.pairs(config.data, session.tokenizer, config.seed, made_by("annotate", "labels"))
    # On the responses as they were labelled: below, rows are changed to end with the token that is scored.
    _tell_longer_wins(pairs.eval)
    # Read before training: a file that is missing should not cost a run.
    demonstrations = _demonstrations(config, session.tokenizer)
    network = _with_score_head(session, network_of(session, made_by("sft")))
    read = partial(_up_to_score, session, network)
    pairs = pairs._replace(train=Pairs(*map(read, pairs.train)), eval=Pairs(*map(read, pairs.eval)))
    kept = {}
    if demonstrations is not None:
        demonstrations = read(demonstrations)
        # Kept beside the model, to find the mean score of any checkpoint when that is read.
        kept = {reward_models.DEMONSTRATIONS: partial(reward_models.keep, demonstrations)}
    write_model_folder(session, network, beside=kept)
    train, held, _ = encoded_rows.rows_of(pairs, config.data, fill_id(session.tokenizer), config.seed)
    # The loss takes no page: Bradley-Terry has no setting.
    params = offline.train_offline(
        session, network, offline.Offline(lambda model, _: reward_model_loss_fn(model), train, held, SHOW)
    )
    # Measured on the weights that are exported, which need not be the last ones.
    mean = 0.0
    if demonstrations is not None:
        model = Model(network.config, params)
        mean = reward_models.mean_score(model, demonstrations, config.batch_size, session.mesh)
    _export(session, network, params, mean)


def reward_model_loss_fn(config: ModelConfig) -> LossFn:
    """Bradley-Terry on the scores of a pair. Batch: {chosen,rejected}_{tokens,lengths}[, weight]; or packed pairs."""

    def loss_fn(params: decoder.Params, batch: Batch) -> dict[str, Mean]:
        return bradley_terry(*pair_scores(config, params, batch), pair_weight(batch))

    return loss_fn


def _with_score_head(session: Session, network: Network) -> Network:
    """Returns the network with a score head: its own if it is a reward model already, else a fresh one."""
    config, score_at = session.config, _score_at(session.config, network)
    if score_at != EOS and startup.is_main():
        print(f"reward model: its score stands at the token {score_at}", flush=True)

    def read() -> Params:
        params = network.read()
        if network.scalar:
            return params
        # The head is random, with a standard deviation of 1 / sqrt(D + 1) as in OpenAI's code: a zero head
        # would give the trunk no gradient in the first step.
        return reward_from_language(network.config, params, jax.random.key(config.seed))

    return network._replace(read=read, scalar=True, score_at=score_at)


def _score_at(config: ConfigDict, start: Network) -> str:
    """The token at which the trained model is read: the page's, else where the makers of a reward model read theirs."""
    # A fresh head can be read anywhere; only at the end token is it known that the response ended.
    published = start.score_at or default_score_at(config.data.template)
    return config.model.score_at or (published if start.scalar else EOS)


def _up_to_score(session: Session, network: Network, found: Sequences) -> Sequences:
    """Sequences that end with the token at which their scores are read."""
    data = session.config.data
    behind = closing(session.tokenizer, data.template, network.score_at, handling_of(data))
    return sequences_up_to_score(found, network.score_at, behind)


def _demonstrations(config: ConfigDict, tokenizer: Any) -> Sequences | None:
    """Reads and encodes up to `center_rows` demonstrations of `center_on`; None where that names nothing."""
    if not config.center_on:
        return None
    chat = config.data.template == CHAT
    rows, skipped = read_instructions(config.center_on, made_by=made_by("make_data", "data"), chat=chat)
    encoded_rows.say(f"center_on: {len(rows)} rows read from {config.center_on}", skipped)
    rows = encoded_rows.draw(rows, config.center_rows, np.random.default_rng(config.seed))
    # A response without its end has no place where its score belongs, so none of them counts in the mean.
    how = dataclasses.replace(handling_of(config.data), not_ended="drop")
    found, counts = encode_sft(rows, tokenizer, config.data.template, NO_LIMIT, how)
    # A demonstration that was cut would be scored in mid-sentence, where scores mean little.
    whole = np.flatnonzero(found.lengths <= config.data.max_length)
    counts["demonstration too long"] = len(found) - len(whole)
    if not len(whole):
        raise UserError(
            f"center_on: none of {len(rows)} demonstrations fits data.max_length={config.data.max_length} "
            f"({counts_text(+counts)}); raise it or set another file"
        )
    encoded_rows.say(f"center_on: {len(whole)} demonstrations", +counts)
    return found.select(whole)


def _export(session: Session, network: Network, params: Params, mean: float) -> None:
    exported = reward_models.exported_tokenizer(
        session.tokenizer, session.tokenizer_from, session.ends, network.config.vocab_size
    )
    with exported as (tokenizer, folder):
        export_model(session, network, params, reward_mean=mean, tokenizer=tokenizer, tokenizer_from=folder)


def _tell_longer_wins(held: Pairs) -> None:
    """Prints the baseline of a reward model: how often the longer response of a held-out pair is the chosen one."""
    if len(held) and startup.is_main():
        chosen, rejected = map(encoded_rows.response_lengths, held)
        # Equal lengths count one half, so that guessing comes to 50 %.
        share = np.mean((chosen > rejected) + 0.5 * (chosen == rejected))
        print(
            f"held-out pairs: the longer output is the chosen one in {share:.1%} of {len(held)}", flush=True
        )
