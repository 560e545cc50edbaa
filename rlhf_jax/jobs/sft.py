"""Supervised fine-tuning on demonstrations."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.data.batches import pad
from rlhf_jax.data.records import read_instructions
from rlhf_jax.data.templates import render
from rlhf_jax.data.tokenization import add_pad, load_tokenizer
from rlhf_jax.jobs import fit, hints, inputs, losses, setup
from rlhf_jax.microfarm import tokenizer as tokenizers
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.models.placement import init_sharded
from rlhf_jax.parallel import startup
from rlhf_jax.training.workdir import prepare


def run(config: ConfigDict, workdir: str) -> None:
    """Trains and writes WORKDIR/export."""
    mesh = setup.start(config, workdir)
    prepare(workdir, config.to_dict())
    tokenizer_from = _tokenizer_folder(config, workdir)
    tokenizer = load_tokenizer(tokenizer_from, made_by=hints.FARM)
    split = inputs.instructions(config.data, tokenizer, config.seed, hints.FARM)
    model, params = _model(config, mesh, tokenizer)
    T, R = inputs.array_sizes(split.train, split.eval)
    state = fit.offline(
        config,
        workdir,
        mesh,
        params,
        losses.sft(model, R, config.logprob_chunk),
        rows=len(split.train),
        make_batch=lambda index_B, rows: pad(split.train, index_B, T, tokenizer.pad_token_id, rows),
        tokens_of=split.train.lengths,
        eval_rows=len(split.eval),
        make_eval_batch=lambda index_B, rows: pad(split.eval, index_B, T, tokenizer.pad_token_id, rows),
        inputs=inputs.digests(config.data.train, config.data.eval, config.model.init),
        show=("loss", "eval/loss"),
    )
    setup.export(workdir, model, state.params, tokenizer, tokenizer_from)


def _model(config: ConfigDict, mesh: Mesh, tokenizer: Any) -> tuple[ModelConfig, Params]:
    m = config.model
    if m.init:
        checkpoint, params = setup.load_model(m.init, m, mesh, hints.SFT, tokens=len(tokenizer))
        return checkpoint.config, params
    model = ModelConfig(
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
    )
    return model, init_sharded(model, mesh, config.seed)


def _tokenizer_folder(config: ConfigDict, workdir: str) -> str:
    """The folder of the tokenizer: the model's, with a PAD token where it had none; the one named; or a new one."""
    folder = Path(workdir) / "tokenizer"
    if config.model.pad_token and config.model.init:
        return _with_pad(config.model, folder)
    if config.model.init or config.model.tokenizer:
        return config.model.init or config.model.tokenizer
    if startup.is_main() and not (folder / "tokenizer_config.json").exists():  # the last file to be written
        rows, _ = read_instructions(config.data.train, made_by=hints.FARM)
        texts = (render(row, config.data.template) + row["output"] for row in rows)
        tokenizers.train(texts, folder, config.model.vocab_size)
    startup.barrier("tokenizer")
    return str(folder)


def _with_pad(model: ConfigDict, folder: Path) -> str:
    """`folder`, where the model's tokenizer is written with a PAD token; the model's own where it has one."""
    if startup.is_main() and not (folder / "tokenizer_config.json").exists():
        added = add_pad(model.init, model.pad_token, folder, made_by=hints.SFT)
        settings = (
            Path(model.init) / "generation_config.json"
        )  # An export takes it from where the tokenizer is.
        if added and settings.is_file():
            shutil.copyfile(settings, folder / settings.name)
    startup.barrier("tokenizer")
    return str(folder) if folder.exists() else model.init
