"""A reward model: one number for a response, learnt from which of two was preferred, or from ratings.

Pairs (`loss=bradley_terry`): the likelihood of a preference is that of Bradley and Terry (1952), sigmoid(r(chosen) -
r(rejected)), and the loss of a pair is -log of it (Ouyang et al. 2022, eq. 1), optionally with a margin (Touvron et al.
2023) and a pull of rewards towards 0 (Eisenstein et al. 2023). A row is one labelled pair, or with `group_by_prompt` a
prompt with all its pairs; its responses share the prompt (`data.share_prompts`).

Ratings: the squared error of sigmoid(r) to the rating's place on its scale (`regression`, Bansal et al. 2023), or
cumulative logits with a threshold between neighbouring levels (`ordinal`). A row is one rated response.

The model is a language model's trunk with one linear head, read at one token of the text (`model.score_at`). The mean
score of demonstrations is measured at the end and goes with the weights: readers subtract it, and a score of 0 means
"as good as a demonstration". `members` trains an ensemble that is read as one model (Coste et al. 2024).
"""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.data.batches import Pairs, Sequences
from rlhf_jax.data.chat.chat_encoding import CHAT
from rlhf_jax.data.records.label_columns import about_label, with_margin
from rlhf_jax.data.records.records import counts_text, read_instructions
from rlhf_jax.data.templates import handling_of
from rlhf_jax.data.tokenization import NO_LIMIT, encode_sft
from rlhf_jax.data.tokens.scored_text import EOS, closing, default_score_at, sequences_up_to_score
from rlhf_jax.data.tokens.special_ids import fill_id
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.measures.reward_accuracy import accuracy_by_label
from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params, increasing, reward_from_language
from rlhf_jax.models.model import COMBINE, SCORE_AS, Reading
from rlhf_jax.models.response_pairs import document_scores, pair_scores, pair_weight
from rlhf_jax.models.responses import Batch
from rlhf_jax.objectives.preference import bradley_terry
from rlhf_jax.objectives.rating_losses import even_thresholds, rating_ordinal, rating_regression
from rlhf_jax.objectives.reduce import Mean
from rlhf_jax.parallel import startup
from rlhf_jax.training.checkpoints.object_stores import at, write_text
from rlhf_jax.training.checkpoints.workdir import one_writer
from rlhf_jax.training.loop.step import LossFn
from rlhf_jax.training.rows import labelled_rows, shared_prompt_rows
from rlhf_jax.training.run import encoded_rows, ensembles, offline, reward_models
from rlhf_jax.training.run.missing_inputs import TABLE, Needs, Read, made_by, model_reads, train_and_eval
from rlhf_jax.training.run.session import Network, Session, network_of, open_session, write_model_folder

NEEDS = Needs(
    reads=(
        *train_and_eval(made_by("annotate", "labels")),
        *model_reads("model.init", made_by("sft")),
        Read("center_on", TABLE, made_by("make_data", "data")),
    ),
    remote=True,
)
RATED = ("regression", "ordinal")
ranges.own_rows(
    "reward_model",
    loss=ranges.one_of("bradley_terry", *RATED),
    margin=ranges.TEXT,
    margin_scale=ranges.number(0),
    centre_coef=ranges.number(0),
    rating_low=ranges.number(),
    rating_high=ranges.number(),
    score_as=ranges.one_of(*SCORE_AS),
    group_by_prompt=ranges.FLAG,
    members=ranges.COUNT,
    member_order=ranges.FLAG,
    combine=ranges.one_of(*COMBINE),
    combine_coef=ranges.number(0),
    **shared_prompt_rows.SHARE_PROMPTS,
)


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Trains on `data.train` from `model.init`; writes WORKDIR/export, with the mean score of demonstrations."""
    _check(config)
    session = open_session(NEEDS, config, workdir, folder=config.model.init, made_by=made_by("sft"))
    found = _read_rows(session)
    rated = config.loss in RATED
    # On the responses as they were labelled: below, rows are changed to end with the token that is scored.
    rivals = {} if rated else _longer_wins(found.eval)
    # Read before training: a file that is missing should not cost a run.
    demonstrations = _demonstrations(config, session.tokenizer)
    start = network_of(session, made_by("sft"))
    network = _with_score_head(session, start)
    members = ensembles.members_of(config, None if start.scalar else partial(_headed, start.config))
    read = partial(_up_to_score, session, network)
    train, held = (read(x) if rated else Pairs(*map(read, x)) for x in (found.train, found.eval))
    found = found._replace(train=train, eval=held)
    kept = {}
    if demonstrations is not None:
        demonstrations = read(demonstrations)
        # Kept beside the model, to find the mean score of any checkpoint when that is read.
        kept = {reward_models.DEMONSTRATIONS: partial(reward_models.keep, demonstrations)}
    write_model_folder(session, network, beside=kept)
    show = ("loss", *(f"{x}{'ratings/error' if rated else 'rewards/accuracies'}" for x in ("", "eval/")))
    method = offline.Offline(
        reward_loss_fn, *_batches(session, network, found), show, members=members, rivals=rivals
    )
    scores = _trained_and_exported(session, network, method, demonstrations, None if rated else found.eval)
    if scores is not None:
        _tell_accuracy(session, *scores, found.eval_rows)


def reward_loss_fn(model: ModelConfig, page: ConfigDict) -> LossFn:
    """The loss that a page asks for."""
    if page.loss in RATED:
        return rating_loss_fn(model, page.rating_high - page.rating_low, ordinal=page.loss == "ordinal")
    return reward_model_loss_fn(model, centre_coef=page.centre_coef)


def reward_model_loss_fn(config: ModelConfig, *, centre_coef: float = 0.0) -> LossFn:
    """Bradley-Terry on the scores of a pair.

    Batch: {chosen,rejected}_{tokens,lengths}[, margin][, weight]; packed pairs; or prompts with several pairs.
    """

    def loss_fn(params: decoder.Params, batch: Batch) -> dict[str, Mean]:
        margin_B = batch["margin"].reshape(-1) if "margin" in batch else None
        scores, weight_B = pair_scores(config, params, batch), pair_weight(batch)
        return bradley_terry(*scores, weight_B, margin_B=margin_B, centre_coef=centre_coef)

    return loss_fn


def rating_loss_fn(config: ModelConfig, span: float, *, ordinal: bool) -> LossFn:
    """Regression or cumulative logits on rated responses. span: from the lowest to the highest rating.

    Batch: tokens, lengths, rating (above the lowest)[, weight]; or packed responses.
    """

    def loss_fn(params: decoder.Params, batch: Batch) -> dict[str, Mean]:
        score_B, weight_B = document_scores(config, params, batch)
        rating_B = batch["rating"].reshape(-1)
        if not ordinal:
            return rating_regression(score_B, rating_B / span, weight_B)
        return rating_ordinal(score_B, rating_B.astype("int32"), increasing(params["thresholds"]), weight_B)

    return loss_fn


def _check(config: ConfigDict) -> None:
    span = config.rating_high - config.rating_low
    if span <= 0:
        raise UserError(
            f"rating_high: {config.rating_high:g} is not above rating_low={config.rating_low:g}; "
            "give the ends of the scale"
        )
    if config.loss == "ordinal" and span % 1:
        raise UserError(
            f"rating_high: {config.rating_high:g}; with loss=ordinal levels are 1 apart, so it is a whole number above "
            f"rating_low={config.rating_low:g}"
        )
    if config.loss in RATED and config.best_metric not in ("", "eval/loss"):
        raise UserError(
            f"best_metric: {config.best_metric} is of pairs; with loss={config.loss} use eval/loss or nothing"
        )
    if config.group_by_prompt and config.data.packing == "on":
        raise UserError(
            "group_by_prompt: true, but data.packing puts pairs of several prompts into a row; set one of them"
        )


def _read_rows(session: Session) -> encoded_rows.Split:
    """Reads pairs, each with what is known of its label, or rated responses with their ratings."""
    config, labelled = session.config, made_by("annotate", "labels")
    about = (config.data, session.tokenizer, config.seed)
    if config.loss not in RATED:
        beside = with_margin(config.margin) if config.margin else about_label
        return encoded_rows.pairs(*about, labelled, beside)
    scale = {"low": config.rating_low, "high": config.rating_high, "whole": config.loss == "ordinal"}
    return labelled_rows.rated(*about, made_by("annotate:ratings", "ratings"), scale)


def _batches(session: Session, network: Network, found: encoded_rows.Split) -> tuple[encoded_rows.Rows, ...]:
    """The rows that steps address, with the columns that the loss asks for."""
    config, pad_id = session.config, fill_id(session.tokenizer)
    rated = config.loss in RATED
    name, scale = ("rating", 1.0) if rated else ("margin", config.margin_scale)
    both = shared_prompt_rows.scored_rows(found, pad_id, network.config, config, rated=rated)
    if not rated and not config.margin:
        return both
    low, columns = config.rating_low if rated else 0.0, []
    for records in (found.train_rows, found.eval_rows):
        columns.append(np.array([(row["beside"][name] - low) * scale for row in records], np.float32))
    return tuple(
        x.with_columns({name: labelled_rows.spread(x, y)}) for x, y in zip(both, columns, strict=True)
    )


def _with_score_head(session: Session, network: Network) -> Network:
    """Returns the network with a score head: its own if it is a reward model already, else a fresh one."""
    config, score_at = session.config, _score_at(session.config, network)
    if score_at != EOS and startup.is_main():
        print(f"reward model: its score stands at the token {score_at}", flush=True)
    K = round(config.rating_high - config.rating_low) if config.loss == "ordinal" else 0

    def read() -> Params:
        params = network.read()
        if not network.scalar:
            params = _headed(network.config, params, config.seed)
        return {**params, "thresholds": even_thresholds(K)} if K else params

    return network._replace(read=read, scalar=True, score_at=score_at, score_as=config.score_as, thresholds=K)


def _headed(config: ModelConfig, params: Params, seed: int) -> Params:
    """The parameters with a fresh score head in place of any head; thresholds stay."""
    kept = {name: x for name, x in params.items() if name == "thresholds"}
    # The head is random, with a standard deviation of 1 / sqrt(D + 1) as in OpenAI's code: a zero head
    # would give the trunk no gradient in the first step.
    return reward_from_language(config, params, jax.random.key(seed)) | kept


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


def _trained_and_exported(
    session: Session,
    network: Network,
    method: offline.Offline,
    demonstrations: Sequences | None,
    held: Pairs | None,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Trains and writes WORKDIR/export; returns what the exported model, or ensemble, says of both sides of pairs."""
    config = session.config
    reading = Reading(combine=config.combine, combine_coef=config.combine_coef)
    how = {"demonstrations": demonstrations, "pairs": held}
    exporter = partial(reward_models.export_rewards, session, network, **how)
    if method.members is None:
        return exporter([lambda: offline.train_offline(session, network, method)])
    member = offline.train_members(session, network, method)
    models = [partial(member, number) for number in range(config.members)]
    return exporter(models, reading=reading)


def _tell_accuracy(session: Session, chosen: np.ndarray, rejected: np.ndarray, rows: list[dict]) -> None:
    """Prints how often the held-out pairs are ranked as labelled, and writes it to WORKDIR/accuracy.json."""
    found = accuracy_by_label(chosen, rejected, [row["beside"] for row in rows])
    if startup.is_main():
        print("held-out pairs: " + "\n".join(found.lines()), flush=True)
        write_text(at(session.workdir) / "accuracy.json", json.dumps(found.as_dict(), indent=2) + "\n")


def _longer_wins(held: Pairs) -> dict[str, float]:
    """The rival of a reward model, printed: how often the longer response of a held-out pair is the chosen one."""
    if not len(held):
        return {}
    chosen, rejected = map(encoded_rows.response_lengths, held)
    # Equal lengths count one half, so that guessing comes to 50 %.
    share = float(np.mean((chosen > rejected) + 0.5 * (chosen == rejected)))
    if startup.is_main():
        said = f"the longer output is the chosen one in {share:.1%} of {len(held)}"
        print(f"held-out pairs: {said}", flush=True)
    return {"longer_wins": share}
