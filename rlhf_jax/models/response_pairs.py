"""Log-probabilities and scores of preference pairs, plain or packed, both sides in one forward pass."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.responses import (
    Batch,
    by_document,
    packed_row_logprobs,
    packed_scores,
    plain_row_logprobs,
    plain_row_mask,
    row_weight,
)
from rlhf_jax.objectives.preference import sequence_logprob


def pair_logprobs(
    config: ModelConfig, R: int, chunk: int, *, temperature: float = 1.0
) -> Callable[[decoder.Params, Batch], tuple[Array, Array]]:
    """`(params, batch) -> (chosen_B, rejected_B)`: summed response log-probs, both sides in one forward pass.

    temperature: of plain rows; packed ones come from files, and are at 1.

    Packed rows of S documents give S / 2 pairs each, concatenated over the batch; rows that hold fewer are filled up
    with pairs of weight 0 (`pair_weight`).
    """

    def logprobs(params: decoder.Params, batch: Batch) -> tuple[Array, Array]:
        if "segments" in batch:
            logprobs_BR, *_ = packed_row_logprobs(config, params, batch, R, chunk)
            return _halves(by_document(logprobs_BR, batch["owners"], batch["lasts"].shape[1]))
        both = _stack_pair(batch)
        logprobs_BR, _, mask_BR = plain_row_logprobs(config, params, both, R, chunk, temperature=temperature)
        return _halves(sequence_logprob(logprobs_BR, mask_BR))

    return logprobs


def pair_tokens(batch: Batch, R: int) -> tuple[Array, Array]:
    """(chosen_B, rejected_B): how many tokens of either response `pair_logprobs` sums over, in the same order."""
    if "segments" in batch:
        ones_BR = jnp.ones(batch["owners"].shape, jnp.float32)
        return _halves(by_document(ones_BR, batch["owners"], batch["lasts"].shape[1]))
    return _halves(jnp.sum(plain_row_mask(_stack_pair(batch), R), axis=1))


def pair_scores(config: ModelConfig, params: decoder.Params, batch: Batch) -> tuple[Array, Array]:
    """(chosen_B, rejected_B): the reward model's scores of both sides, read at their last tokens, in one forward pass.

    Batch: {chosen,rejected}_{tokens,lengths}; or packed rows; or rows of a prompt with several responses and pairs
    (`data.prompt_groups`), whose pairs come flat.
    """
    if "better" in batch:
        scores_BK = _scores_of_prompts(config, params, batch)
        chosen_B, rejected_B = (
            jnp.take_along_axis(scores_BK, batch[side], axis=1).reshape(-1) for side in ("better", "worse")
        )
        return chosen_B, rejected_B
    if "segments" in batch:
        return _halves(packed_scores(config, params, batch))
    both = _stack_pair(batch)
    hidden_BTD = decoder.hidden_states(config, params, both["tokens"])
    return _halves(decoder.last_token_scores(hidden_BTD, params, both["lengths"]))


def _scores_of_prompts(config: ModelConfig, params: decoder.Params, batch: Batch) -> Array:
    """The scores [B, K] of K responses to each prompt, which may share it."""
    if "segments" in batch:
        return packed_scores(config, params, batch)
    tokens_BT = batch["tokens"].reshape(-1, batch["tokens"].shape[-1])
    hidden_BTD = decoder.hidden_states(config, params, tokens_BT)
    scores_B = decoder.last_token_scores(hidden_BTD, params, batch["lengths"].reshape(-1))
    return scores_B.reshape(batch["lengths"].shape)


def document_scores(config: ModelConfig, params: decoder.Params, batch: Batch) -> tuple[Array, Array]:
    """(scores, weights), one number a response, of responses that are no pairs; those of packed rows come flat.

    Batch: tokens, lengths[, weight]; or packed rows, whose empty places have weight 0.
    """
    weight_B = row_weight(batch)
    if "segments" not in batch:
        hidden_BTD = decoder.hidden_states(config, params, batch["tokens"])
        return decoder.last_token_scores(hidden_BTD, params, batch["lengths"]), weight_B
    scores_BS = packed_scores(config, params, batch)
    there_BS = jnp.arange(scores_BS.shape[1]) < batch["documents"][:, None]
    return scores_BS.reshape(-1), (there_BS * weight_B[:, None]).reshape(-1)


def pair_weight(batch: Batch) -> Array:
    """The weight of every pair [B]; 0 for the places of a packed row, or a prompt's, that hold no pair."""
    if "better" in batch:
        there_BS = jnp.arange(batch["better"].shape[1]) < batch["pairs"][:, None]
        weight_B = batch.get("weight", jnp.ones(batch["pairs"].shape, jnp.float32))
        return (there_BS * weight_B[:, None]).reshape(-1)
    if "segments" not in batch:
        return row_weight(batch)
    # Two documents are a pair, chosen first, and those that are there come before the empty places.
    there_BQ = jnp.arange(batch["lasts"].shape[1] // 2) < batch["documents"][:, None] // 2
    return (there_BQ * row_weight(batch)[:, None]).reshape(-1)


def _stack_pair(batch: Batch) -> Batch:
    """Chosen and rejected as one batch. They alternate, so that both sides of a pair stay on one device."""
    sides = ("chosen", "rejected")
    names = [name.removeprefix("chosen_") for name in batch if name.startswith("chosen_")]

    def interleave(name: str) -> Array:
        both = jnp.stack([batch[f"{side}_{name}"] for side in sides], axis=1)
        return both.reshape(-1, *both.shape[2:])

    return {name: interleave(name) for name in names}


def _halves(x_B: Array) -> tuple[Array, Array]:
    """Splits values of a batch made by `_stack_pair` into chosen and rejected."""
    pairs_B2 = x_B.reshape(-1, 2)
    return pairs_B2[:, 0], pairs_B2[:, 1]
