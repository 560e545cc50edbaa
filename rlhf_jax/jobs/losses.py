"""The loss of each method as `loss_fn(params, batch) -> {"loss": Mean, ...}`: a model call and an objective.

Batches are dicts of arrays with the batch as first axis. Rows of weight 0 fill up an evaluation batch and count
nowhere. Packed rows (`data.packing`) have segments; there a loss is over documents as if they stood alone.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.packed import by_document, packed_logprobs, packed_scores
from rlhf_jax.models.responses import response_logprobs, response_mask, response_values, window
from rlhf_jax.objectives.policy_gradient import policy_loss, value_loss
from rlhf_jax.objectives.preference import bradley_terry, dpo, sequence_logprob
from rlhf_jax.objectives.reduce import Mean, masked_mean
from rlhf_jax.objectives.supervised import sft_loss
from rlhf_jax.rollout.experience import Experience

Batch = dict[str, Array]
LossFn = Callable[[decoder.Params, Batch], dict[str, Mean]]


def sft(config: ModelConfig, R: int, chunk: int) -> LossFn:
    """Negative log-likelihood of the response tokens.

    Batch: tokens, lengths, prompt_lengths[, trained][, weight]; or packed rows.
    """

    def loss_fn(params: decoder.Params, batch: Batch) -> dict[str, Mean]:
        score = _score_packed if "segments" in batch else _score
        logprobs_BR, entropy_BR, mask_BR = score(config, params, batch, R, chunk)
        return sft_loss(logprobs_BR, entropy_BR, mask_BR & (_row_weight(batch) > 0)[:, None])

    return loss_fn


def reward_model(config: ModelConfig) -> LossFn:
    """Bradley-Terry on scores at the last token.

    Batch: {chosen,rejected}_{tokens,lengths}[, weight]; or packed rows.
    """

    def loss_fn(params: decoder.Params, batch: Batch) -> dict[str, Mean]:
        if "segments" in batch:
            scores_BS = packed_scores(config, params, *_packed(batch), batch["lasts"])
            return bradley_terry(*_halves(scores_BS), _pair_weight(batch))
        both = _stack_pair(batch)
        hidden_BTD = decoder.hidden_states(config, params, both["tokens"])
        chosen_B, rejected_B = _halves(decoder.last_token_scores(hidden_BTD, params, both["lengths"]))
        return bradley_terry(chosen_B, rejected_B, _pair_weight(batch))

    return loss_fn


def dpo_loss(config: ModelConfig, R: int, chunk: int, *, beta: float, label_smoothing: float) -> LossFn:
    """DPO against precomputed reference log-probs. Batch: a pair, ref_chosen, ref_rejected[, weight]."""
    sequence_logprobs = pair_logprobs(config, R, chunk)

    def loss_fn(params: decoder.Params, batch: Batch) -> dict[str, Mean]:
        chosen_B, rejected_B = sequence_logprobs(params, batch)
        return dpo(
            chosen_B,
            rejected_B,
            batch["ref_chosen"].reshape(-1),
            batch["ref_rejected"].reshape(-1),
            _pair_weight(batch),
            beta=beta,
            label_smoothing=label_smoothing,
        )

    return loss_fn


def pair_logprobs(
    config: ModelConfig, R: int, chunk: int
) -> Callable[[decoder.Params, Batch], tuple[Array, Array]]:
    """`(params, batch) -> (chosen_B, rejected_B)`: summed response log-probs, both sides in one forward pass.

    Of packed rows, whose pairs are then put end to end: S / 2 for each row, those that are not there included.
    """

    def logprobs(params: decoder.Params, batch: Batch) -> tuple[Array, Array]:
        if "segments" in batch:
            logprobs_BR, *_ = _score_packed(config, params, batch, R, chunk)
            return _halves(by_document(logprobs_BR, batch["owners"], batch["lasts"].shape[1]))
        logprobs_BR, _, mask_BR = _score(config, params, _stack_pair(batch), R, chunk)
        return _halves(sequence_logprob(logprobs_BR, mask_BR))

    return logprobs


def ppo(
    policy_config: ModelConfig,
    value_config: ModelConfig,
    *,
    clip: float,
    value_clip: float,
    value_coef: float,
    temperature: float,
    chunk: int,
) -> LossFn:
    """Clipped policy loss + value_coef * clipped value loss. Params: {policy, value}; batch: an Experience.

    Both terms are sums over the same response tokens, so they share one weight.
    """

    def loss_fn(params: dict[str, decoder.Params], batch: Experience) -> dict[str, Mean]:
        R = batch.mask_BR.shape[1]
        where = (batch.tokens_BT, batch.prompt_lengths_B, R)
        logprobs_BR, entropy_BR = response_logprobs(
            policy_config, params["policy"], *where, temperature=temperature, chunk=chunk
        )
        values_BR = response_values(value_config, params["value"], *where)
        policy = policy_loss(
            logprobs_BR, batch.old_logprobs_BR, batch.advantages_BR, batch.mask_BR, clip=clip
        )
        value = value_loss(values_BR, batch.old_values_BR, batch.returns_BR, batch.mask_BR, clip=value_clip)
        pg, vf = policy.pop("loss"), value.pop("loss")
        return {
            "loss": Mean(pg.sum + value_coef * vf.sum, pg.weight),
            "loss/policy": pg,
            "loss/value": vf,
            "policy/entropy": masked_mean(entropy_BR, batch.mask_BR),
            **policy,
            **value,
        }

    return loss_fn


def _score(
    config: ModelConfig, params: decoder.Params, batch: Batch, R: int, chunk: int
) -> tuple[Array, Array, Array]:
    """(log-probs, entropies, mask) of the response tokens, each [B, R]."""
    logprobs_BR, entropy_BR = response_logprobs(
        config, params, batch["tokens"], batch["prompt_lengths"], R, chunk=chunk
    )
    mask_BR = response_mask(batch["lengths"], batch["prompt_lengths"], R)
    if "trained" in batch:  # conversations: the window begins at the assistant's first turn
        mask_BR &= window(batch["trained"], batch["prompt_lengths"], R, offset=0)
    return logprobs_BR, entropy_BR, mask_BR


def _score_packed(
    config: ModelConfig, params: decoder.Params, batch: Batch, R: int, chunk: int
) -> tuple[Array, Array, Array]:
    """(log-probs, entropies, mask) of the trained tokens of packed rows, each [B, R]."""
    logprobs_BR, entropy_BR = packed_logprobs(config, params, *_packed(batch), batch["targets"], chunk=chunk)
    return logprobs_BR, entropy_BR, batch["owners"] > 0


def _packed(batch: Batch) -> tuple[Array, Array, Array]:
    return batch["tokens"], batch["segments"], batch["positions"]


def _stack_pair(batch: Batch) -> Batch:
    """Chosen and rejected as one batch. They alternate, so a batch cut over devices stays where it is."""
    sides = ("chosen", "rejected")
    names = [name.removeprefix("chosen_") for name in batch if name.startswith("chosen_")]

    def interleave(name: str) -> Array:
        both = jnp.stack([batch[f"{side}_{name}"] for side in sides], axis=1)
        return both.reshape(-1, *both.shape[2:])

    return {name: interleave(name) for name in names}


def _halves(x_B: Array) -> tuple[Array, Array]:
    pairs_B2 = x_B.reshape(-1, 2)
    return pairs_B2[:, 0], pairs_B2[:, 1]


def _row_weight(batch: Batch) -> Array:
    rows = batch.get("chosen_lengths", batch.get("lengths", batch.get("documents")))
    return batch.get("weight", jnp.ones(rows.shape, jnp.float32))


def _pair_weight(batch: Batch) -> Array:
    """Of every pair; packed rows have fewer than there is room for."""
    if "segments" not in batch:
        return _row_weight(batch)
    there_BQ = jnp.arange(batch["lasts"].shape[1] // 2) < batch["documents"][:, None] // 2
    return (there_BQ * _row_weight(batch)[:, None]).reshape(-1)
