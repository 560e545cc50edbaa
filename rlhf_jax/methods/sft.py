"""Supervised fine-tuning on demonstrations: the first step of every method here (Ouyang et al. 2022, section 3.5).

The loss is the negative log-likelihood of the response tokens, -sum_t log pi(y_t | x, y_<t), summed over all
responses of a batch and divided by the number of their tokens, so that neither padding nor micro-batches nor the mesh
changes it. A row is one demonstration, or one conversation of which the assistant's turns are trained. Prompts are
read and never trained.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from rlhf_jax.data.records.records import read_instructions
from rlhf_jax.data.templates import render
from rlhf_jax.data.tokens import tokenizer_files as tokenizers
from rlhf_jax.data.tokens.special_ids import fill_id
from rlhf_jax.data.tokens.tokenizer_files import add_pad
from rlhf_jax.errors import UserError
from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.placement import init_sharded
from rlhf_jax.models.responses import Batch, row_logprobs
from rlhf_jax.objectives.logprobs import sft_loss
from rlhf_jax.objectives.reduce import Mean
from rlhf_jax.parallel import startup
from rlhf_jax.training.checkpoints.object_stores import is_remote
from rlhf_jax.training.checkpoints.workdir import one_writer
from rlhf_jax.training.loop.step import LossFn
from rlhf_jax.training.run import encoded_rows, load_models, offline
from rlhf_jax.training.run.missing_inputs import (
    SAMPLED_READS,
    TOKENIZER,
    Needs,
    Read,
    made_by,
    model_reads,
    train_and_eval,
)
from rlhf_jax.training.run.session import (
    Network,
    Session,
    export_model,
    network_of,
    open_session,
    write_model_folder,
)

SHOW = ("loss", "eval/loss")


NEEDS = Needs(
    reads=(
        *train_and_eval(made_by("make_data", "data")),
        *model_reads("model.init", made_by("sft")),
        *SAMPLED_READS,
        Read(
            "model.tokenizer",
            TOKENIZER,
            made_by("make_data", "data"),
            when=lambda page: not page["model"]["init"],
        ),
    ),
    remote=True,
)


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Trains on `data.train`, from `model.init` or from scratch; writes WORKDIR/export."""
    session = open_session(
        NEEDS,
        config,
        workdir,
        folder=config.model.init,
        made_by=made_by("make_data", "data"),
        # A fresh model has no tokenizer of its own; one is trained on the rows before they can be encoded.
        find_tokenizer=partial(_tokenizer_folder, config, workdir),
    )
    _check(config)
    demonstrations = encoded_rows.instructions(
        config.data, session.tokenizer, config.seed, made_by("make_data", "data")
    )
    network = network_of(session, made_by("sft")) if session.folder else _fresh(session)
    # Before the first step: a checkpoint of a run that was killed can then be read by the next job.
    write_model_folder(session, network)
    train, held, R = encoded_rows.rows_of(
        demonstrations, config.data, fill_id(session.tokenizer), config.seed, auto=(config, network.config)
    )
    # The page is an argument because the advice about memory builds the loss of changed pages, too.
    method = offline.Offline(
        lambda model, page: sft_loss_fn(model, R, page.logprob_chunk), train, held, show=SHOW
    )
    params = offline.train_offline(session, network, method)
    export_model(session, network, params, ends=session.ends)


def sft_loss_fn(config: ModelConfig, R: int, chunk: int) -> LossFn:
    """Negative log-likelihood of the response tokens, and their entropy.

    Batch: tokens, lengths, prompt_lengths[, trained][, weight]; or packed rows. R: response tokens there is room for.
    """

    def loss_fn(params: decoder.Params, batch: Batch) -> dict[str, Mean]:
        return sft_loss(*row_logprobs(config, params, batch, R, chunk))

    return loss_fn


def _check(config: ConfigDict) -> None:
    for field, value in (("model.adapter", config.model.adapter), ("lora.rank", config.lora.rank)):
        if value and not config.model.init:
            raise UserError(f"{field}: {value}, but there is no model to adapt; set model.init")


def _fresh(session: Session) -> Network:
    """Describes a model of the page's shape, whose weights will be random."""
    m, tokens = session.config.model, len(session.tokenizer)
    # vocab_size is the tokenizer's and not the page's: byte-pair encoding of little text ends with fewer
    # tokens than were asked for.
    model = ModelConfig(
        vocab_size=tokens,
        width=m.width,
        layers=m.layers,
        heads=m.heads,
        kv_heads=m.kv_heads,
        head_dim=m.width // m.heads,
        ff=m.ff,
        tie_embeddings=m.tie_embeddings,
        dtype=m.dtype,
        remat=m.remat,
        attention=m.attention,
    )
    return Network(model, partial(init_sharded, model, session.mesh, session.config.seed))


def _tokenizer_folder(config: ConfigDict, workdir: str, init: str) -> str:
    """Returns the folder of the run's tokenizer.

    That is the model's own, with `model.pad_token` added where it has no PAD; the one that `model.tokenizer` names; or
    one that is trained on the rows and written to WORKDIR/tokenizer.
    """
    if not init and config.model.tokenizer:
        return load_models.resolve_folder(config.model.tokenizer)
    own = load_models.tokenizer_folder(init) if init else ""
    if own and not config.model.pad_token:
        return own
    if is_remote(workdir):
        raise UserError(
            f"model.{'pad_token' if own else 'tokenizer'}: a tokenizer cannot be written into {workdir}; "
            "name a folder that has one, or use a --workdir on a disk"
        )
    folder = Path(workdir) / "tokenizer"
    if own:
        return _with_pad(own, config.model.pad_token, folder)
    # tokenizer_config.json is written last: where it is missing, an earlier start was killed halfway.
    if startup.is_main() and not (folder / "tokenizer_config.json").exists():
        rows, _ = read_instructions(config.data.train, made_by=made_by("make_data", "data"))
        texts = (render(row, config.data.template) + row["output"] for row in rows)
        tokenizers.train_tokenizer(texts, folder, config.model.vocab_size)
    startup.barrier("tokenizer")
    return str(folder)


def _with_pad(source: str, pad_token: str, folder: Path) -> str:
    """Writes the tokenizer of `source` with a PAD token to `folder`; returns `source` where it has one already."""
    if startup.is_main() and not (folder / "tokenizer_config.json").exists():
        added = add_pad(source, pad_token, folder, made_by=made_by("sft"))
        if not added:
            print(f"notice: model.pad_token has no effect: the tokenizer of {source} has a PAD", flush=True)
        # An export takes generation_config.json from where the tokenizer is, so it has to come along.
        settings = Path(source) / "generation_config.json"
        if added and settings.is_file():
            shutil.copyfile(settings, folder / settings.name)
    startup.barrier("tokenizer")
    return str(folder) if folder.exists() else source
