"""Direct preference optimisation on pairwise labels (Rafailov et al. 2023), and the losses that vary it.

A language model says how it would reward a response without a reward model: beta * log(pi(y|x) / pi_ref(y|x)), up to
a term of the prompt alone. Put into the Bradley-Terry model of a preference, that term cancels, and the loss of a
pair is

    -log sigmoid(beta * ((log pi(chosen) - log pi_ref(chosen)) - (log pi(rejected) - log pi_ref(rejected))))    (eq. 7)

with log-probs summed over a response. The reference is the model that training starts from. A row is one labelled
pair. Its sides share their prompt (`data.share_prompts`), and with other pairs an array's row (`data.packing`); ties
and pairs without a usable label are left out when the file is read, and counted.

`loss` names another way to compare both sides: a row of `objectives.preference_losses.LOSSES`, where its paper stands.
SimPO and ORPO have no reference, nor has any loss with `reference` none; then none is computed.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from jax.sharding import Mesh
from jaxtyping import ScalarLike
from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.data.tokenization import SIDES
from rlhf_jax.data.tokens.special_ids import fill_id
from rlhf_jax.errors import UserError
from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.response_pairs import pair_logprobs, pair_tokens, pair_weight
from rlhf_jax.models.responses import Batch
from rlhf_jax.objectives import preference_losses
from rlhf_jax.objectives.reduce import Mean
from rlhf_jax.parallel.mesh import check_batch
from rlhf_jax.training.checkpoints.workdir import one_writer
from rlhf_jax.training.loop.step import LossFn
from rlhf_jax.training.rows import shared_prompt_rows
from rlhf_jax.training.run import encoded_rows, offline, reference_logprobs
from rlhf_jax.training.run.load_models import Start
from rlhf_jax.training.run.memory_check import Phase
from rlhf_jax.training.run.missing_inputs import SAMPLED_READS, Needs, made_by, model_reads, train_and_eval
from rlhf_jax.training.run.session import (
    Network,
    Session,
    export_model,
    network_of,
    open_session,
    write_model_folder,
)

SHOW = ("loss", "rewards/accuracies", "eval/rewards/accuracies")


def refuse(page: ConfigDict, workdir: str, prefix: str) -> None:
    """Raises UserError for an importance weight that the loss cannot have."""
    without = "no reference" if not has_reference(page) else "no likelihood" if "ipo" in page.loss else ""
    if page.importance == "rejected" and without:
        raise UserError(
            f"{prefix}importance: 'rejected'; it is the ratio to a reference that a loss of likelihoods is weighted "
            f"by, and {page.loss} has {without} here; use none or wpo"
        )


NEEDS = Needs(
    reads=(
        *train_and_eval(made_by("annotate", "labels")),
        *model_reads("model.init", made_by("sft")),
        *SAMPLED_READS,
    ),
    writes=("reference_cache",),
    remote=True,
    also=refuse,
)
ranges.own_rows(
    "dpo",
    loss=ranges.one_of(*preference_losses.LOSSES),
    reference=ranges.one_of("cached", "step", "none"),
    simpo_gamma=ranges.number(0),
    sft_coef=ranges.number(0),
    sft_nll=ranges.one_of(*preference_losses.NLL),
    importance=ranges.one_of(*preference_losses.IMPORTANCE),
    **shared_prompt_rows.SHARE_PROMPTS,
)


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Trains on `data.train` from `model.init`, which is also the reference; writes WORKDIR/export."""
    session = open_session(NEEDS, config, workdir, folder=config.model.init, made_by=made_by("sft"))
    # Checked again by the driver; here it comes before hours may go into the reference's log-probs.
    check_batch(config.batch_size, session.mesh)
    pairs = encoded_rows.pairs(config.data, session.tokenizer, config.seed, made_by("annotate", "labels"))
    network = network_of(session, made_by("sft"))
    if network.scalar:
        raise UserError(
            f"model.init: {config.model.init} is a reward model; DPO starts from a language model"
        )
    write_model_folder(session, network)
    method = _method(session, network, pairs)
    params = offline.train_offline(session, network, method)
    export_model(session, network, params, ends=session.ends)


def dpo_loss_fn(config: ModelConfig, R: int, chunk: int, **settings: ScalarLike | str) -> LossFn:
    """The loss of a batch of pairs, against log-probs of the reference that are part of it where there is one.

    Batch: a pair[, ref_chosen, ref_rejected][, weight]; or packed pairs. R: response tokens there is room for.
    settings: those of `preference_losses.pair_loss`: beta, and others that are not to have their defaults.
    """
    sequence_logprobs = pair_logprobs(config, R, chunk)

    def loss_fn(params: decoder.Params, batch: Batch) -> dict[str, Mean]:
        chosen_B, rejected_B = sequence_logprobs(params, batch)
        # Packed rows hold the reference's log-probs as [B, pairs]; the policy's come flat, one number a pair.
        reference = [batch[f"ref_{side}"].reshape(-1) for side in SIDES if f"ref_{side}" in batch]
        pair = preference_losses.PairLogprobs(chosen_B, rejected_B, *pair_tokens(batch, R), *reference)
        return preference_losses.pair_loss(pair, pair_weight(batch), **settings)

    return loss_fn


def has_reference(page: ConfigDict) -> bool:
    """Whether the page's loss is measured from a reference; without one, none is computed."""
    return preference_losses.LOSSES[page.loss].reference and page.reference != "none"


def _method(session: Session, network: Network, pairs: encoded_rows.Split) -> offline.Offline:
    """Describes DPO on these pairs. The reference's log-probs are computed once before the first step, or in each."""
    config, mesh = session.config, session.mesh
    about = (pairs, config.data, fill_id(session.tokenizer), config.seed)
    train, held, R = shared_prompt_rows.pair_rows(*about, network.config, auto=config)
    # Once costs one forward pass over all rows and keeps no second model in memory; with every step nothing
    # is computed ahead, which suits a run that will see only a part of its rows.
    with_every_step = config.reference == "step"

    def complete(start: Start) -> offline.Completed:
        if with_every_step:
            enrich = reference_logprobs.with_every_step(config, mesh, network.config, start, train.pairs, R)
            return offline.Completed(train, held, enrich)
        # Kept on disk file by file: a run with other evaluation rows still finds those of training.
        found = [
            rows.with_columns(reference_logprobs.logprobs(session, network.config, start, encoded, rows, R))
            for encoded, rows in ((pairs.train, train), (pairs.eval, held))
        ]
        return offline.Completed(*found)

    def room(rows: offline.Rows) -> offline.Rows:
        # The step is compiled before the weights are read, so the columns have to be there already.
        return rows.with_columns(reference_logprobs.zeros(rows))

    def loss_of(model: ModelConfig, page: ConfigDict) -> LossFn:
        names = ("loss", "beta", "label_smoothing", "simpo_gamma", "sft_coef", "sft_nll", "importance")
        return dpo_loss_fn(model, R, page.logprob_chunk, **{name: page[name] for name in names})

    def before(page: ConfigDict, mesh: Mesh, params: Any, batch: Any, beside: int) -> tuple[Phase, ...]:
        score = reference_logprobs.every_step_program(page, mesh, network.config, train.pairs, R)
        return (Phase("reference", partial(score.trace, params, batch), beside),)

    if not has_reference(config):
        return offline.Offline(loss_of, train, held, SHOW)
    return offline.Offline(
        loss_of,
        room(train),
        room(held),
        SHOW,
        complete=complete,
        keeps_start=with_every_step,
        before=before if with_every_step else None,
    )
