"""Direct preference optimisation on pairwise labels."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.data.batches import eval_batches
from rlhf_jax.data.tokenization import load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import adapters, fit, hints, inputs, losses, setup
from rlhf_jax.jobs.rows import Rows, rows_of
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import Params
from rlhf_jax.parallel.arrays import check_batch, gather, host_rows, to_global
from rlhf_jax.training.progress import Progress
from rlhf_jax.training.workdir import prepare


def run(config: ConfigDict, workdir: str) -> None:
    """Trains and writes WORKDIR/export."""
    mesh = setup.start(config, workdir)
    prepare(workdir, config.to_dict())
    check_batch(config.batch_size, mesh)
    tokenizer = load_tokenizer(config.model.init, made_by=hints.SFT)
    split = inputs.pairs(config.data, tokenizer, config.seed, hints.LABELS)
    lora = adapters.settings(config.lora)
    checkpoint, params = setup.load_model(
        config.model.init, config.model, mesh, hints.SFT, adapter=config.model.adapter
    )
    if checkpoint.is_scalar:
        raise UserError(
            f"model.init: {config.model.init} is a reward model; DPO starts from a language model"
        )
    start = adapters.start(checkpoint.config, params, lora, mesh, config.seed)
    model = start.config
    train, held, R = rows_of(split, config.data, tokenizer.pad_token_id, config.seed)

    def batches_of(found: Rows, reference: dict[str, np.ndarray]) -> fit.MakeBatch:
        def make(index_B: np.ndarray, rows: slice | np.ndarray) -> dict[str, np.ndarray]:
            return found.make(index_B, rows) | {name: x[index_B[rows]] for name, x in reference.items()}

        return make

    def reference_of(found: Rows) -> dict[str, np.ndarray]:
        return _reference(config, mesh, model, start.whole, found, R)

    make, make_held = (batches_of(found, reference_of(found)) for found in (train, held))
    state = fit.offline(
        config,
        workdir,
        mesh,
        start.trained,
        losses.dpo_loss(
            model, R, config.logprob_chunk, beta=config.beta, label_smoothing=config.label_smoothing
        ),
        frozen=start.frozen,
        rows=train.count,
        make_batch=make,
        tokens_of=train.tokens,
        eval_rows=held.count,
        make_eval_batch=make_held,
        inputs=inputs.digests(config.data.train, config.data.eval, config.model.init, config.model.adapter),
        show=("loss", "rewards/accuracies", "eval/rewards/accuracies"),
    )
    setup.export(workdir, model, state.params, tokenizer, config.model.init)


def _reference(
    config: ConfigDict, mesh: Mesh, model: ModelConfig, params: Params, found: Rows, R: int
) -> dict[str, np.ndarray]:
    """Summed log-probs of every pair under the frozen reference: {ref_chosen, ref_rejected}, each [n] float32, or
    [n, pairs] where rows are packed.

    Computed once, in batches of the training shape, so that step 0 sees the very numbers the policy gives.
    """
    score = jax.jit(losses.pair_logprobs(model, R, config.logprob_chunk))
    n, shape = found.count, (found.pairs,) if found.pairs else ()
    unit = "rows of reference pairs" if found.pairs else "reference pairs"
    mine, progress = host_rows(config.batch_size, mesh), Progress(n, unit=unit)
    reference = {name: np.zeros((n, *shape), np.float32) for name in ("ref_chosen", "ref_rejected")}
    for index_B, weight_B in eval_batches(n, config.batch_size):
        sides = gather(score(params, to_global(found.make(index_B, mine), mesh)))
        real = weight_B > 0
        for name, x in zip(reference, sides, strict=True):
            reference[name][index_B[real]] = x.reshape(len(index_B), *shape)[real]
        progress.update(int(index_B[real][-1]) + 1)
    progress.close()
    return reference
