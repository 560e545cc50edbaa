"""Direct preference optimisation on pairwise labels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from rlhf_jax.data.tokenization import Pairs, load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import fit, hints, inputs, losses, reference, setup
from rlhf_jax.models.decoder import Params
from rlhf_jax.parallel.arrays import check_batch
from rlhf_jax.training.workdir import prepare


def run(config: ConfigDict, workdir: str) -> None:
    """Trains and writes WORKDIR/export."""
    mesh = setup.start(config, workdir)
    prepare(workdir, config.to_dict())
    check_batch(config.batch_size, mesh)
    reference.check(config)
    init = setup.resolve(config.model.init)
    tokenizer_from = setup.tokenizer_folder(init)
    tokenizer = load_tokenizer(tokenizer_from, made_by=hints.SFT)
    split = inputs.pairs(config.data, tokenizer, config.seed, hints.LABELS)
    checkpoint = setup.describe_model(init, config.model, hints.SFT, tokens=len(tokenizer))
    if checkpoint.is_scalar:
        raise UserError(
            f"model.init: {config.model.init} is a reward model; DPO starts from a language model"
        )
    model = checkpoint.config
    setup.describe(workdir, model, tokenizer, tokenizer_from)
    T, R = inputs.array_sizes(*split.train, *split.eval)

    def batches_of(found: Pairs, known: dict[str, np.ndarray]) -> fit.MakeBatch:
        def make(index_B: np.ndarray, rows: slice | np.ndarray) -> dict[str, np.ndarray]:
            arrays = inputs.pad_pairs(found, index_B, T, tokenizer.pad_token_id, rows)
            return arrays | {name: x[index_B[rows]] for name, x in known.items()}

        return make

    sides = tuple((found, reference.zeros(found)) for found in (split.train, split.eval))
    train, held_out = (batches_of(*side) for side in sides)
    enrich: list[Callable[[dict], dict]] = []

    def load() -> Params:
        _, params = setup.load_model(init, config.model, mesh, hints.SFT, tokens=len(tokenizer))
        if config.reference == "step":
            enrich.append(reference.with_every_step(config, mesh, model, params, R))
            return params
        for found, room in sides:
            room |= reference.logprobs(config, mesh, model, params, init, found, batches_of(found, {}), R)
        return params

    state = fit.offline(
        config,
        workdir,
        mesh,
        model,
        lambda shape, c: losses.dpo_loss(
            shape, R, c.logprob_chunk, beta=c.beta, label_smoothing=c.label_smoothing
        ),
        load,
        rows=len(split.train),
        make_batch=train,
        tokens_of=split.train.chosen.lengths + split.train.rejected.lengths,
        eval_rows=len(split.eval),
        make_eval_batch=held_out,
        inputs=inputs.digests(config.data.train, config.data.eval, init),
        enrich=lambda batch: enrich[0](batch) if enrich else batch,
        frozen_copy=config.reference == "step",
        show=("loss", "rewards/accuracies", "eval/rewards/accuracies"),
    )
    setup.export(workdir, model, state.params, tokenizer, tokenizer_from)
