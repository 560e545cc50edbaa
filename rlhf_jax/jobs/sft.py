"""Supervised fine-tuning on demonstrations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.data.records import read_instructions
from rlhf_jax.data.templates import render
from rlhf_jax.data.tokenization import load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import adapters, fit, hints, inputs, losses, setup
from rlhf_jax.jobs.rows import rows_of
from rlhf_jax.microfarm import tokenizer as tokenizers
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.placement import init_sharded
from rlhf_jax.parallel import startup
from rlhf_jax.training.workdir import prepare


def run(config: ConfigDict, workdir: str) -> None:
    """Trains and writes WORKDIR/export."""
    mesh = setup.start(config, workdir)
    prepare(workdir, config.to_dict())
    _check(config)
    tokenizer_from = _tokenizer_folder(config, workdir)
    tokenizer = load_tokenizer(tokenizer_from, made_by=hints.FARM)
    split = inputs.instructions(config.data, tokenizer, config.seed, hints.FARM)
    start = _start(config, mesh, tokenizer)
    train, held, R = rows_of(split, config.data, tokenizer.pad_token_id, config.seed)
    state = fit.offline(
        config,
        workdir,
        mesh,
        start.trained,
        losses.sft(start.config, R, config.logprob_chunk),
        frozen=start.frozen,
        rows=train.count,
        make_batch=train.make,
        tokens_of=train.tokens,
        eval_rows=held.count,
        make_eval_batch=held.make,
        inputs=inputs.digests(config.data.train, config.data.eval, config.model.init, config.model.adapter),
        show=("loss", "eval/loss"),
    )
    setup.export(workdir, start.config, state.params, tokenizer, tokenizer_from)


def _check(config: ConfigDict) -> None:
    for field, value in (("model.adapter", config.model.adapter), ("lora.rank", config.lora.rank)):
        if value and not config.model.init:
            raise UserError(f"{field}: {value}, but there is no model to adapt; set model.init")


def _start(config: ConfigDict, mesh: Mesh, tokenizer: Any) -> adapters.Start:
    m, lora = config.model, adapters.settings(config.lora)
    if m.init:
        checkpoint, params = setup.load_model(m.init, m, mesh, hints.SFT, adapter=m.adapter)
        return adapters.start(checkpoint.config, params, lora, mesh, config.seed)
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
    return adapters.start(model, init_sharded(model, mesh, config.seed), lora, mesh, config.seed)


def _tokenizer_folder(config: ConfigDict, workdir: str) -> str:
    """The folder of the tokenizer; one is trained on the training text when none is named."""
    if config.model.init or config.model.tokenizer:
        return config.model.init or config.model.tokenizer
    folder = Path(workdir) / "tokenizer"
    if startup.is_main() and not (folder / "tokenizer_config.json").exists():  # the last file to be written
        rows, _ = read_instructions(config.data.train, made_by=hints.FARM)
        texts = (render(row, config.data.template) + row["output"] for row in rows)
        tokenizers.train(texts, folder, config.model.vocab_size)
    startup.barrier("tokenizer")
    return str(folder)
