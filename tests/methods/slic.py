"""Sequence likelihood calibration on pairwise labels (Zhao et al. 2023, SLiC-HF, eq. 2): how a method is added.

The rejected response should be less likely than the chosen one by a margin in nats; there is no reference:

    max(0, margin - (log pi(chosen) - log pi(rejected)))
"""

from __future__ import annotations

import jax.numpy as jnp
from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.data.tokens.special_ids import fill_id
from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.response_pairs import pair_logprobs, pair_weight
from rlhf_jax.models.responses import Batch
from rlhf_jax.objectives.reduce import Mean, masked_mean
from rlhf_jax.training.checkpoints.workdir import one_writer
from rlhf_jax.training.loop.step import LossFn
from rlhf_jax.training.run import encoded_rows
from rlhf_jax.training.run.missing_inputs import Needs, made_by, model_reads, train_and_eval
from rlhf_jax.training.run.offline import Offline, train_offline
from rlhf_jax.training.run.session import export_model, network_of, open_session, write_model_folder

NEEDS = Needs(
    reads=(*train_and_eval(made_by("annotate", "labels")), *model_reads("model.init", made_by("sft"))),
    remote=True,
)
ranges.own_rows("slic", margin=ranges.number(0))


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Trains on `data.train` from `model.init`; writes WORKDIR/export."""
    session = open_session(NEEDS, config, workdir, folder=config.model.init, made_by=made_by("sft"))
    pairs = encoded_rows.pairs(config.data, session.tokenizer, config.seed, made_by("annotate", "labels"))
    train, held, R = encoded_rows.rows_of(pairs, config.data, fill_id(session.tokenizer), config.seed)
    network = network_of(session, made_by("sft"))
    write_model_folder(session, network)
    method = Offline(lambda model, page: slic_loss_fn(model, R, page), train, held, show=("loss", "ranked"))
    export_model(session, network, train_offline(session, network, method), ends=session.ends)


def slic_loss_fn(config: ModelConfig, R: int, page: ConfigDict) -> LossFn:
    """The hinge loss of a batch of pairs, packed or not. R: response tokens there is room for."""
    logprobs_of = pair_logprobs(config, R, page.logprob_chunk)

    def loss_fn(params: decoder.Params, batch: Batch) -> dict[str, Mean]:
        chosen_B, rejected_B = logprobs_of(params, batch)
        gap_B, weight_B = chosen_B - rejected_B, pair_weight(batch)
        return {
            "loss": masked_mean(jnp.maximum(0.0, page.margin - gap_B), weight_B),
            "ranked": masked_mean(gap_B > 0, weight_B),
        }

    return loss_fn
