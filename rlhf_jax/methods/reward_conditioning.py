"""Binary reward conditioning: a control token in front of the prompt says whether the response was the better one.

AlpacaFarm (Dubois et al. 2023, section 4; after Keskar et al. 2019, Liu et al. 2023 and Korbak et al. 2023): every
response of a labelled pair is trained with SFT's loss, behind the marker of its side,

    -log pi(chosen | POSITIVE, x)  -log pi(rejected | NEGATIVE, x)

and the trained model is asked behind the positive marker. Nobody has to remember that: the exported tokenizer says so
in tokenizer_config.json (`prompt_prefix`), and all that encodes prompts here reads it there: sampling, PPO, further
training (see `data.tokens.tokenizer_files`). Other programs have to put the marker in front themselves.

A row is one response. A marker is a token that is added to the tokenizer (its embedding starts as the mean of the
others', AlpacaFarm's rule for new tokens, where the model has no row to spare) or, where the vocabulary must stay as it
is, plain text. Ties and pairs without a usable label are left out and counted; so is a response that has the same
marker in several pairs, after the first time. A response that was chosen once and rejected once is trained both ways.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.data.tokens.special_ids import fill_id
from rlhf_jax.data.tokens.tokenizer_files import prefix_ids, with_prefix
from rlhf_jax.errors import UserError
from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.responses import Batch, row_logprobs
from rlhf_jax.objectives.logprobs import sft_loss
from rlhf_jax.objectives.reduce import Mean
from rlhf_jax.training.checkpoints.workdir import one_writer
from rlhf_jax.training.loop.step import LossFn
from rlhf_jax.training.rows import labelled_rows
from rlhf_jax.training.run import encoded_rows, offline
from rlhf_jax.training.run.missing_inputs import SAMPLED_READS, Needs, made_by, model_reads, train_and_eval
from rlhf_jax.training.run.session import (
    Session,
    export_model,
    marked_tokenizer,
    network_of,
    open_session,
    write_model_folder,
)

SHOW = ("loss", "eval/loss")


# Its tokenizer is written into the workdir, which has to lie on a disk for that.
NEEDS = Needs(
    reads=(
        *train_and_eval(made_by("annotate", "labels")),
        *model_reads("model.init", made_by("sft")),
        *SAMPLED_READS,
    )
)
_MARKER = ranges.Range(lambda value: ranges.is_text(value) and bool(value.strip()), "text that is not blank")
ranges.own_rows(
    "reward_conditioning",
    positive=_MARKER,
    negative=_MARKER,
    marker_tokens=ranges.FLAG,
    best_metric=ranges.one_of("eval/loss", "eval/entropy", "eval/win_rate", or_none=True),
)


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Trains on both responses of the pairs of `data.train`, from `model.init`; writes WORKDIR/export."""
    _check(config)
    tokens = (config.positive, config.negative) if config.marker_tokens else ()
    session = open_session(
        NEEDS,
        config,
        workdir,
        folder=config.model.init,
        made_by=made_by("sft"),
        find_tokenizer=partial(marked_tokenizer, workdir, tokens, config.positive, made_by("sft")),
    )
    network = network_of(session, made_by("sft"))
    if network.scalar:
        raise UserError(f"model.init: {config.model.init} is a reward model; give a language model")
    # The session's tokenizer is the one that is exported: it has the positive marker in front of every prompt.
    sides = {"chosen": session.tokenizer, "rejected": with_prefix(session.tokenizer, config.negative)}
    _check_markers(session, *(prefix_ids(tokenizer) for tokenizer in sides.values()))
    responses = labelled_rows.single_responses(config.data, sides, config.seed, made_by("annotate", "labels"))
    write_model_folder(session, network)
    train, held, R = encoded_rows.rows_of(
        responses, config.data, fill_id(session.tokenizer), config.seed, auto=(config, network.config)
    )
    method = offline.Offline(
        lambda model, page: conditioned_loss_fn(model, R, page.logprob_chunk), train, held, show=SHOW
    )
    params = offline.train_offline(session, network, method)
    export_model(session, network, params, ends=session.ends)


def conditioned_loss_fn(config: ModelConfig, R: int, chunk: int) -> LossFn:
    """Negative log-likelihood of the responses' tokens behind their markers, and their entropy.

    Batch: tokens, lengths, prompt_lengths[, trained][, weight]; or packed rows. R: response tokens there is room for.
    """

    def loss_fn(params: decoder.Params, batch: Batch) -> dict[str, Mean]:
        return sft_loss(*row_logprobs(config, params, batch, R, chunk))

    return loss_fn


def _check(config: ConfigDict) -> None:
    if config.positive == config.negative:
        raise UserError(f"negative: {config.negative!r} is the positive marker, too; use another text")
    # An adapter leaves embeddings as they are: two new tokens would stay the same row, and nothing tell them apart.
    if config.marker_tokens and config.lora.rank:
        raise UserError(
            f"marker_tokens: true with lora.rank={config.lora.rank}, which does not train the new tokens' embeddings; "
            "use marker_tokens=false with markers of plain text, or lora.rank=0"
        )


def _check_markers(session: Session, positive_F: np.ndarray, negative_F: np.ndarray) -> None:
    """Raises UserError where the tokenizer cannot tell the markers from each other, or from its own special tokens."""
    tokenizer, config = session.tokenizer, session.config
    own = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    for field, ids_F in (("positive", positive_F), ("negative", negative_F)):
        if not len(ids_F) or own & set(ids_F.tolist()):
            raise UserError(
                f"{field}: {config[field]!r} is {ids_F.tolist()} for the tokenizer, which has other uses for that; "
                "use another text"
            )
    if np.array_equal(positive_F, negative_F):
        raise UserError(
            f"negative: {config.negative!r} and {config.positive!r} are the same tokens; use other texts"
        )
