"""Kahneman-Tversky optimisation on single responses that are desirable or not (Ethayarajh et al. 2024).

People weigh losses more than gains, and both from where they stand. A response gains r = log(pi(y|x) / pi_ref(y|x)),
where one stands is z0 = KL(pi || pi_ref), and the loss is the mean over rows of

    w_D (1 - sigmoid(beta (r - z0)))   where y is desirable,    w_U (1 - sigmoid(beta (z0 - r)))   where it is not

No row needs a partner: a row is one response with a flag. Labelled pairs become two rows each, ratings are cut at
`data.desirable_from`. z0 is the mean of r, cut off at 0, over the batch's prompts with responses to other prompts,
without gradient. Which response that is, is fixed by the data: so z0 is one number of the whole batch, measured
before the step, and depends neither on micro-batches nor on the mesh. In an evaluation it is that of each batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, ScalarLike
from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.data.batches import Sequences, flattened, pad, permutation
from rlhf_jax.data.tokens.special_ids import fill_id
from rlhf_jax.errors import UserError
from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.responses import Batch, plain_row_logprobs, row_weight
from rlhf_jax.objectives import preference_losses
from rlhf_jax.objectives.preference import sequence_logprob
from rlhf_jax.objectives.reduce import Mean
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.mesh import BATCH_AXES, check_batch
from rlhf_jax.training.checkpoints.workdir import one_writer
from rlhf_jax.training.loop.step import LossFn
from rlhf_jax.training.rows import labelled_rows
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
_MEASURED = ("loss", "kl", "rewards/chosen", "rewards/rejected", "rewards/accuracies")
# The arrays of a row's prompt with a response to another prompt stand beside its own, under these names.
_KL = "kl_"

NEEDS = Needs(
    reads=(
        *train_and_eval(made_by("annotate", "labels")),
        *model_reads("model.init", made_by("sft")),
        *SAMPLED_READS,
    ),
    writes=("reference_cache",),
    remote=True,
)
ranges.own_rows(
    "kto",
    desirable_weight=ranges.number(0),
    undesirable_weight=ranges.number(0),
    best_metric=ranges.one_of(
        *(f"eval/{name}" for name in (*_MEASURED, "logps/chosen", "logps/rejected", "win_rate")), or_none=True
    ),
    **{"data.desirable_from": ranges.number()},
)


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Trains on `data.train` from `model.init`, which is also the reference; writes WORKDIR/export."""
    session = open_session(NEEDS, config, workdir, folder=config.model.init, made_by=made_by("sft"))
    # Checked again by the driver; here it comes before hours may go into the reference's log-probs.
    check_batch(config.batch_size, session.mesh)
    found = labelled_rows.unpaired(config.data, session.tokenizer, config.seed, made_by("annotate", "labels"))
    network = network_of(session, made_by("sft"))
    if network.scalar:
        raise UserError(
            f"model.init: {config.model.init} is a reward model; KTO starts from a language model"
        )
    write_model_folder(session, network)
    method = _method(session, network, found)
    params = offline.train_offline(session, network, method)
    export_model(session, network, params, ends=session.ends)


def kto_loss_fn(config: ModelConfig, R: int, chunk: int, **settings: ScalarLike) -> LossFn:
    """The loss of a batch of single responses.

    Batch: tokens, lengths, prompt_lengths, desirable, ref, z0 (one number, in every row)[, trained][, weight].
    R: response tokens there is room for. settings: those of `preference_losses.kto`.
    """
    logprobs_of = row_sums(config, R, chunk)

    def loss_fn(params: decoder.Params, batch: Batch) -> dict[str, Mean]:
        return preference_losses.kto(
            logprobs_of(params, batch),
            batch["ref"],
            batch["z0"],
            batch["desirable"],
            row_weight(batch),
            **settings,
        )

    return loss_fn


def row_sums(config: ModelConfig, R: int, chunk: int) -> Callable[[decoder.Params, Batch], Array]:
    """`(params, batch) -> [B]`: the log-prob of each row's response, summed over its tokens."""

    def logprobs(params: decoder.Params, batch: Batch) -> Array:
        logprobs_BR, _, mask_BR = plain_row_logprobs(config, params, batch, R, chunk)
        return sequence_logprob(logprobs_BR, mask_BR)

    return logprobs


def both_sums(
    config: ModelConfig, R: int, chunk: int
) -> Callable[[decoder.Params, Batch], tuple[Array, Array]]:
    """The same of each row and of its prompt with another response, which the reference is asked for both."""
    logprobs_of = row_sums(config, R, chunk)
    return lambda params, batch: (logprobs_of(params, batch), logprobs_of(params, _others(batch)))


REFERENCE = reference_logprobs.Columns(("ref", "ref_kl"), both_sums, "responses")


def mismatched(rows: Sequences, seed: int, field: str) -> Sequences:
    """The prompt of every row, followed by a response that answers another prompt.

    In an order drawn with the seed each row takes the response of the next one with another prompt: the same whatever
    batches are made. The neighbour in the file will not do, as that is often the other side of a pair.
    """
    prompts = [rows[i][:n].tobytes() for i, n in enumerate(rows.prompt_lengths)]
    if len(set(prompts)) < 2:
        raise UserError(
            f"{field}: all {len(rows)} rows have one prompt; z0 needs responses to other prompts, so use two or more"
        )
    order = permutation(0, len(rows), seed)
    partner = np.zeros(len(rows), np.int64)
    for k, i in enumerate(order):
        further = (order[(k + d) % len(rows)] for d in range(1, len(rows)))
        partner[i] = next(j for j in further if prompts[j] != prompts[i])
    tokens = [
        np.concatenate([rows[i][: rows.prompt_lengths[i]], rows[j][rows.prompt_lengths[j] :]])
        for i, j in enumerate(partner)
    ]
    trained = None
    if rows.trained is not None:
        said = [
            rows.trained[rows.offsets[j] : rows.offsets[j + 1]][rows.prompt_lengths[j] :] for j in partner
        ]
        trained = np.concatenate(
            [x for n, mask in zip(rows.prompt_lengths, said, strict=True) for x in (np.zeros(n, bool), mask)]
        )
    return Sequences(*flattened(tokens), rows.prompt_lengths, trained)


def _method(session: Session, network: Network, found: encoded_rows.Split) -> offline.Offline:
    """Describes KTO on these rows. The reference's log-probs are computed once before the first step, or in each."""
    config, mesh, model = session.config, session.mesh, network.config
    records = {"train": found.train_rows, "eval": found.eval_rows}
    flags = {name: np.array([row["liked"] for row in rows]) for name, rows in records.items()}
    _tell_balance(flags["train"], config.desirable_weight, config.undesirable_weight)
    encoded = {
        name: (rows, mismatched(rows, config.seed, f"data.{name}"))
        for name, rows in (("train", found.train), ("eval", found.eval))
    }
    (T, R), (T_kl, R_kl) = (
        encoded_rows.array_sizes(*sets) for sets in zip(encoded["train"], encoded["eval"], strict=True)
    )
    R = max(R, R_kl)
    fill = fill_id(session.tokenizer)
    train, held = (_rows(encoded[name], (T, T_kl), fill, flags[name]) for name in ("train", "eval"))
    with_every_step = config.reference == "step"

    def complete(start: Start) -> offline.Completed:
        z0 = _measured_before(mesh, row_sums(model, R, config.logprob_chunk))
        if with_every_step:
            step = reference_logprobs.with_every_step(config, mesh, model, start, 0, R, REFERENCE)
            return offline.Completed(train, held, lambda batch, params: z0(step(batch, params), params))
        both = [
            rows.with_columns(
                reference_logprobs.logprobs(session, model, start, encoded[name], rows, R, REFERENCE)
            )
            for name, rows in (("train", train), ("eval", held))
        ]
        return offline.Completed(*both, z0)

    def room(rows: offline.Rows) -> offline.Rows:
        # The step is compiled before the weights are read, so the columns have to be there already.
        return rows.with_columns(
            reference_logprobs.zeros(rows, REFERENCE) | {"z0": np.zeros(rows.count, np.float32)}
        )

    def loss_of(model: ModelConfig, page: ConfigDict) -> LossFn:
        names = ("beta", "desirable_weight", "undesirable_weight")
        return kto_loss_fn(model, R, page.logprob_chunk, **{name: page[name] for name in names})

    def before(page: ConfigDict, mesh: Mesh, params: Any, batch: Any, beside: int) -> tuple[Phase, ...]:
        found = {"z0": _z0_program(mesh, row_sums(model, R, page.logprob_chunk))}
        if with_every_step:
            found["reference"] = reference_logprobs.every_step_program(page, mesh, model, 0, R, REFERENCE)
        return tuple(Phase(name, partial(x.trace, params, batch), beside) for name, x in found.items())

    return offline.Offline(
        loss_of,
        room(train),
        room(held),
        SHOW,
        complete=complete,
        keeps_start=with_every_step,
        before=before,
    )


def _rows(
    encoded: Sequence[Sequences], sizes: tuple[int, int], pad_id: int, desirable: np.ndarray
) -> encoded_rows.Rows:
    def make(index_B: np.ndarray, rows: slice | np.ndarray) -> dict[str, np.ndarray]:
        own, other = (pad(x, index_B, T, pad_id, rows) for x, T in zip(encoded, sizes, strict=True))
        return own | {f"{_KL}{name}": x for name, x in other.items()}

    return encoded_rows.Rows(len(encoded[0]), encoded[0].lengths, make).with_columns({"desirable": desirable})


def _others(batch: Batch) -> Batch:
    return {name.removeprefix(_KL): x for name, x in batch.items() if name.startswith(_KL)}


def _measured_before(
    mesh: Mesh, logprobs_of: Callable[[decoder.Params, Batch], Array]
) -> Callable[[Batch, decoder.Params], Batch]:
    """Returns a function that adds z0, of the parameters as they are before the step, to every row of a batch."""
    z0_of = _z0_program(mesh, logprobs_of)
    return lambda batch, params: batch | {"z0": z0_of(params, batch)}


def _z0_program(mesh: Mesh, logprobs_of: Callable[[decoder.Params, Batch], Array]) -> Any:
    """Compiles `(params, batch) -> [B]`: z0 in every row."""

    @partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec(BATCH_AXES)))
    def z0_of(params: decoder.Params, batch: Batch) -> Array:
        policy_B = logprobs_of(params, _others(batch))
        weight_B = row_weight(batch)
        return jnp.broadcast_to(preference_losses.kto_z0(policy_B, batch["ref_kl"], weight_B), weight_B.shape)

    return z0_of


def _tell_balance(desirable: np.ndarray, good: float, bad: float) -> None:
    """Says how many rows of either kind there are; where their weights are far apart, what the paper advises."""
    n, m = int(desirable.sum()), int((~desirable).sum())
    if not n or not m:
        kind = "desirable" if n else "undesirable"
        raise UserError(f"data.train: all {n + m} rows are {kind}; KTO learns from both kinds")
    if not startup.is_main():
        return
    print(f"data.train: {n} desirable and {m} undesirable responses", flush=True)
    if bad and not 1 <= good * n / (bad * m) <= 4 / 3:
        print(
            f"notice: desirable_weight x {n} is {good * n / (bad * m):.3g} times undesirable_weight x {m}; "
            "the paper advises 1 to 1.33 times",
            flush=True,
        )
