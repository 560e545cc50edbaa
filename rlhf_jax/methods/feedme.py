"""Binary FeedME: goes on with supervised fine-tuning on the response that was preferred of each labelled pair.

AlpacaFarm (Dubois et al. 2023, section 4) names it after OpenAI's text-davinci models, which were trained on the
responses that people had liked best, and simplifies it to pairs: what a label says beside which response it chose is
thrown away. The loss is SFT's, the negative log-likelihood of the chosen response's tokens,

    -sum_t log pi(y_t | x, y_<t)      over the tokens of all chosen responses, divided by how many these are.

A row is one chosen response with its prompt. Ties and pairs without a usable label are left out and counted; so is a
response that several pairs of its prompt have chosen, after the first time: else it would weigh as often as it was
compared. Where the labels are noise, half of what is imitated was not the better one.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.data.tokens.special_ids import fill_id
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
from rlhf_jax.training.run.session import export_model, network_of, open_session, write_model_folder

SHOW = ("loss", "eval/loss")


NEEDS = Needs(
    reads=(
        *train_and_eval(made_by("annotate", "labels")),
        *model_reads("model.init", made_by("sft")),
        *SAMPLED_READS,
    ),
    remote=True,
)
ranges.own_rows(
    "feedme",
    best_metric=ranges.one_of("eval/loss", "eval/entropy", "eval/win_rate", or_none=True),
)


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Trains on the chosen responses of `data.train`, from `model.init`; writes WORKDIR/export."""
    session = open_session(NEEDS, config, workdir, folder=config.model.init, made_by=made_by("sft"))
    chosen = labelled_rows.single_responses(
        config.data, {"chosen": session.tokenizer}, config.seed, made_by("annotate", "labels")
    )
    network = network_of(session, made_by("sft"))
    if network.scalar:
        raise UserError(
            f"model.init: {config.model.init} is a reward model; FeedME starts from a language model"
        )
    write_model_folder(session, network)
    train, held, R = encoded_rows.rows_of(
        chosen, config.data, fill_id(session.tokenizer), config.seed, auto=(config, network.config)
    )
    method = offline.Offline(
        lambda model, page: feedme_loss_fn(model, R, page.logprob_chunk), train, held, show=SHOW
    )
    params = offline.train_offline(session, network, method)
    export_model(session, network, params, ends=session.ends)


def feedme_loss_fn(config: ModelConfig, R: int, chunk: int) -> LossFn:
    """Negative log-likelihood of the chosen responses' tokens, and their entropy.

    Batch: tokens, lengths, prompt_lengths[, trained][, weight]; or packed rows. R: response tokens there is room for.
    """

    def loss_fn(params: decoder.Params, batch: Batch) -> dict[str, Mean]:
        return sft_loss(*row_logprobs(config, params, batch, R, chunk))

    return loss_fn
