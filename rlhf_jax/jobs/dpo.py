"""Direct preference optimisation on pairwise labels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from rlhf_jax.data.handling import handling_of
from rlhf_jax.data.special_ids import end_ids, fill_id
from rlhf_jax.data.tokenizer_files import load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import adapters, fit, hints, inputs, loading, losses, reference, setup
from rlhf_jax.jobs.rows import Rows, rows_of
from rlhf_jax.parallel.arrays import check_batch
from rlhf_jax.training.workdir import one_writer, prepare


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Trains and writes WORKDIR/export."""
    mesh = setup.start(config, workdir)
    prepare(workdir, config.to_dict())
    check_batch(config.batch_size, mesh)
    lora = adapters.settings(config.lora)
    init = loading.resolve(config.model.init)
    tokenizer_from = loading.tokenizer_folder(init)
    tokenizer = load_tokenizer(tokenizer_from, made_by=hints.SFT)
    inputs.keep_date(config, workdir, tokenizer)
    split = inputs.pairs(config.data, tokenizer, config.seed, hints.LABELS)
    checkpoint = loading.describe_model(
        init, config.model, hints.SFT, tokens=len(tokenizer), adapter=config.model.adapter
    )
    if checkpoint.is_scalar:
        raise UserError(
            f"model.init: {config.model.init} is a reward model; DPO starts from a language model"
        )
    model, base = adapters.model_of(checkpoint, lora), loading.base_of(init)
    setup.describe(workdir, model, tokenizer, tokenizer_from, adapter=lora, base=base)
    train, held, R = rows_of(split, config.data, fill_id(tokenizer), config.seed)
    sources = loading.sources(init, config.model.adapter)

    def batches_of(found: Rows, known: dict[str, np.ndarray]) -> fit.MakeBatch:
        def make(index_B: np.ndarray, rows: slice | np.ndarray) -> dict[str, np.ndarray]:
            return found.make(index_B, rows) | {name: x[index_B[rows]] for name, x in known.items()}

        return make

    sides = (split.train, train, reference.zeros(train)), (split.eval, held, reference.zeros(held))
    make, make_held = (batches_of(found, room) for _, found, room in sides)
    enrich: list[Callable[[dict], dict]] = []

    def load() -> adapters.Start:
        about = {"adapter": config.model.adapter, "base_dtype": lora.base_dtype}
        _, params = loading.load_model(init, config.model, mesh, hints.SFT, tokens=len(tokenizer), **about)
        start = adapters.start(model, params, lora, mesh, config.seed)
        if config.reference == "step":
            enrich.append(reference.with_every_step(config, mesh, model, start, train.pairs, R))
            return start
        for pairs, found, room in sides:
            room |= reference.logprobs(config, mesh, model, start, sources, pairs, found, R)
        return start

    state = fit.offline(
        config,
        workdir,
        mesh,
        model,
        lambda shape, c: losses.dpo_loss(
            shape, R, c.logprob_chunk, beta=c.beta, label_smoothing=c.label_smoothing
        ),
        load,
        rows=train.count,
        make_batch=make,
        tokens_of=train.tokens,
        eval_rows=held.count,
        make_eval_batch=make_held,
        inputs=inputs.digests(config.data.train, config.data.eval, *sources),
        enrich=lambda batch: enrich[0](batch) if enrich else batch,
        frozen_copy=config.reference == "step",
        show=("loss", "rewards/accuracies", "eval/rewards/accuracies"),
    )
    ends = end_ids(tokenizer, tokenizer_from, config.data.template, handling_of(config.data))
    setup.export(workdir, model, state.params, tokenizer, tokenizer_from, base=base, ends=ends)
