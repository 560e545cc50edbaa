"""Supervised fine-tuning on demonstrations."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.data.handling import handling_of
from rlhf_jax.data.records import read_instructions
from rlhf_jax.data.special_ids import end_ids, fill_id
from rlhf_jax.data.templates import render
from rlhf_jax.data.tokenizer_files import add_pad, load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import adapters, fit, hints, inputs, loading, losses, setup
from rlhf_jax.jobs.rows import rows_of
from rlhf_jax.microfarm import tokenizer as tokenizers
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.lora import Lora
from rlhf_jax.models.placement import init_sharded
from rlhf_jax.parallel import startup
from rlhf_jax.training.storage import is_remote
from rlhf_jax.training.workdir import one_writer, prepare


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Trains and writes WORKDIR/export."""
    mesh = setup.start(config, workdir)
    prepare(workdir, config.to_dict())
    lora = adapters.settings(config.lora)
    _check(config)
    init = loading.resolve(config.model.init) if config.model.init else ""
    tokenizer_from = _tokenizer_folder(config, workdir, init)
    tokenizer = load_tokenizer(tokenizer_from, made_by=hints.FARM)
    inputs.keep_date(config, workdir, tokenizer)
    split = inputs.instructions(config.data, tokenizer, config.seed, hints.FARM)
    model = _model(config, tokenizer, init, lora)
    setup.describe(workdir, model, tokenizer, tokenizer_from, adapter=lora, base=loading.base_of(init))
    train, held, R = rows_of(split, config.data, fill_id(tokenizer), config.seed)
    state = fit.offline(
        config,
        workdir,
        mesh,
        model,
        lambda shape, c: losses.sft(shape, R, c.logprob_chunk),
        lambda: adapters.start(model, _params(config, mesh, model, init, lora), lora, mesh, config.seed),
        rows=train.count,
        make_batch=train.make,
        tokens_of=train.tokens,
        eval_rows=held.count,
        make_eval_batch=held.make,
        inputs=inputs.digests(
            config.data.train, config.data.eval, *loading.sources(init, config.model.adapter)
        ),
        show=("loss", "eval/loss"),
    )
    ends = end_ids(tokenizer, tokenizer_from, config.data.template, handling_of(config.data))
    setup.export(
        workdir, model, state.params, tokenizer, tokenizer_from, base=loading.base_of(init), ends=ends
    )


def _check(config: ConfigDict) -> None:
    for field, value in (("model.adapter", config.model.adapter), ("lora.rank", config.lora.rank)):
        if value and not config.model.init:
            raise UserError(f"{field}: {value}, but there is no model to adapt; set model.init")


def _model(config: ConfigDict, tokenizer: Any, init: str, lora: Lora) -> ModelConfig:
    m = config.model
    if init:
        found = loading.describe_model(init, m, hints.SFT, tokens=len(tokenizer), adapter=m.adapter)
        return adapters.model_of(found, lora)
    return ModelConfig(
        vocab_size=len(tokenizer),
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


def _params(config: ConfigDict, mesh: Mesh, model: ModelConfig, init: str, lora: Lora) -> Params:
    if init:
        about = {"adapter": config.model.adapter, "base_dtype": lora.base_dtype}
        return loading.load_model(init, config.model, mesh, hints.SFT, tokens=model.vocab_size, **about)[1]
    return init_sharded(model, mesh, config.seed)


def _tokenizer_folder(config: ConfigDict, workdir: str, init: str = "") -> str:
    """The folder of the tokenizer: the model's, with a PAD token where it had none; the one named; or a new one."""
    if not init and config.model.tokenizer:
        return loading.resolve(config.model.tokenizer)
    own = loading.tokenizer_folder(init) if init else ""
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
    if startup.is_main() and not (folder / "tokenizer_config.json").exists():  # the last file to be written
        rows, _ = read_instructions(config.data.train, made_by=hints.FARM)
        texts = (render(row, config.data.template) + row["output"] for row in rows)
        tokenizers.train(texts, folder, config.model.vocab_size)
    startup.barrier("tokenizer")
    return str(folder)


def _with_pad(source: str, pad_token: str, folder: Path) -> str:
    """`folder`, where the model's tokenizer is written with a PAD token; the model's own where it has one."""
    if startup.is_main() and not (folder / "tokenizer_config.json").exists():
        added = add_pad(source, pad_token, folder, made_by=hints.SFT)
        if not added:
            print(f"notice: model.pad_token has no effect: the tokenizer of {source} has a PAD", flush=True)
        settings = Path(source) / "generation_config.json"  # An export takes it from where the tokenizer is.
        if added and settings.is_file():
            shutil.copyfile(settings, folder / settings.name)
    startup.barrier("tokenizer")
    return str(folder) if folder.exists() else source
