"""Rank responses to align with human feedback (Yuan et al. 2023, RRHF and its chat model Wombat).

Several responses to a prompt have scores, from a reward model, a judge or people. The policy should find a better
response likelier than a worse one, and imitate the best: with p the log-prob of a response divided by its tokens,

    L = sum over r_i < r_j of max(0, p_i - p_j)  -  log pi(the response with the highest score)      (section 3.1)

There is no reference, no value model and no sampling: one model is held, as in fine-tuning. A row is one prompt with
all of its responses; responses that are too long or have no score are left out and counted, and a prompt whose scores
do not differ keeps only the second term. Which responses are ranked is which files `data.train` names: provided ones,
sampled ones, or both, with a comma between them. Ranking pairs, `rank/accuracy` measures the policy as a reward model.
"""

from __future__ import annotations

import jax.numpy as jnp
from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.data.tokens.special_ids import fill_id
from rlhf_jax.errors import UserError
from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.responses import Batch, plain_row_logprobs
from rlhf_jax.objectives import ranking
from rlhf_jax.objectives.preference import sequence_logprob
from rlhf_jax.objectives.reduce import Mean
from rlhf_jax.training.checkpoints.workdir import one_writer
from rlhf_jax.training.loop.step import LossFn
from rlhf_jax.training.rows import labelled_rows
from rlhf_jax.training.run import offline
from rlhf_jax.training.run.missing_inputs import SAMPLED_READS, TABLES, Needs, Read, made_by, model_reads
from rlhf_jax.training.run.session import export_model, network_of, open_session, write_model_folder

SHOW = ("loss", "rank/accuracy", "eval/rank/accuracy")
SCORES = made_by("score", "candidates/scores")

NEEDS = Needs(
    reads=(
        Read("data.train", TABLES, SCORES),
        Read("data.eval", TABLES, SCORES),
        *model_reads("model.init", made_by("sft")),
        *SAMPLED_READS,
    ),
    remote=True,
)
ranges.own_rows(
    "rrhf",
    rank_weight=ranges.number(0),
    sft_weight=ranges.number(0),
    length_penalty=ranges.number(0),
    normalisation=ranges.one_of(*ranking.NORMALISATIONS),
    **{"data.query": ranges.one_of("instruction", "prompt")},
)


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Trains on the scored responses of `data.train` from `model.init`; writes WORKDIR/export."""
    session = open_session(NEEDS, config, workdir, folder=config.model.init, made_by=made_by("sft"))
    if not config.rank_weight and not config.sft_weight:
        raise UserError("rank_weight, sft_weight: both are 0, so nothing is trained; set one of them")
    split = labelled_rows.candidates(config.data, session.tokenizer, config.seed, SCORES)
    train, held, R = labelled_rows.candidate_rows(split, fill_id(session.tokenizer))
    network = network_of(session, made_by("sft"))
    if network.scalar:
        raise UserError(
            f"model.init: {config.model.init} is a reward model; RRHF starts from a language model"
        )
    write_model_folder(session, network)

    def loss_of(model: ModelConfig, page: ConfigDict) -> LossFn:
        return rrhf_loss_fn(
            model,
            R,
            page.logprob_chunk,
            rank_weight=page.rank_weight,
            sft_weight=page.sft_weight,
            length_penalty=page.length_penalty,
            normalisation=page.normalisation,
        )

    method = offline.Offline(loss_of, train, held, SHOW)
    params = offline.train_offline(session, network, method)
    export_model(session, network, params, ends=session.ends)


def rrhf_loss_fn(
    config: ModelConfig,
    R: int,
    chunk: int,
    *,
    rank_weight: float = 1.0,
    sft_weight: float = 1.0,
    length_penalty: float = 1.0,
    normalisation: str = "paper",
) -> LossFn:
    """RRHF on a batch of B prompts with N responses each, a mean over prompts (see `objectives.ranking`).

    Batch: tokens [B, N, T], lengths, prompt_lengths, scores, candidates (whether there is such a response) [B, N]
    [, trained [B, N, T]][, weight [B]]. R: response tokens there is room for.
    """

    def loss_fn(params: decoder.Params, batch: Batch) -> dict[str, Mean]:
        B, N = batch["scores"].shape
        # One row a response. Prompts are the first axis, so those of one prompt stay on its device.
        names = [name for name in ("tokens", "lengths", "prompt_lengths", "trained") if name in batch]
        flat = {name: batch[name].reshape(B * N, *batch[name].shape[2:]) for name in names}
        logprobs_MR, _, mask_MR = plain_row_logprobs(config, params, flat, R, chunk)
        found = ranking.Ranked(
            sequence_logprob(logprobs_MR, mask_MR).reshape(B, N),
            mask_MR.sum(axis=1).reshape(B, N),
            batch["lengths"],
            batch["scores"],
            batch["candidates"],
        )
        weight_B = batch.get("weight", jnp.ones(B))
        return ranking.rrhf(
            found,
            weight_B,
            rank_weight=rank_weight,
            sft_weight=sft_weight,
            length_penalty=length_penalty,
            normalisation=normalisation,
        )

    return loss_fn
