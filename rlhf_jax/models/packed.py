"""Reading a model on packed rows: each document as if it were alone.

The arrays are those of `data.packing`: segments number the documents of a row from 1 (0 is padding), and positions
start at 0 in each document.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.objectives.logprobs import token_logprobs


def packed_logprobs(
    config: ModelConfig,
    params: decoder.Params,
    tokens_BT: Int[Array, "B T"],
    segments_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
    targets_BR: Int[Array, "B R"],
    *,
    chunk: int = 128,
) -> tuple[Float[Array, "B R"], Float[Array, "B R"]]:
    """(log-probs, entropies) of the tokens in the target columns, float32. The head runs on no other position.

    A token is predicted by the column before it, which belongs to its document: first tokens are no targets.
    """
    hidden_BTD = decoder.hidden_states(config, params, tokens_BT, positions_BT, segments_BT=segments_BT)
    before_BR1 = jnp.maximum(targets_BR - 1, 0)[..., None]
    hidden_BRD = decoder.for_head(config, jnp.take_along_axis(hidden_BTD, before_BR1, axis=1))
    wanted_BR = jnp.take_along_axis(tokens_BT, targets_BR, axis=1)
    head_DV = decoder.head(config, params)
    return token_logprobs(hidden_BRD, head_DV, wanted_BR, chunk=chunk, softcap=config.logit_softcap)


def packed_scores(
    config: ModelConfig,
    params: decoder.Params,
    tokens_BT: Int[Array, "B T"],
    segments_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
    lasts_BS: Int[Array, "B S"],
) -> Float[Array, "B S"]:
    """The score at each document's last token (rule M6)."""
    hidden_BTD = decoder.hidden_states(config, params, tokens_BT, positions_BT, segments_BT=segments_BT)
    return decoder.scalars(jnp.take_along_axis(hidden_BTD, lasts_BS[..., None], axis=1), params)


def by_document(x_BR: Float[Array, "B R"], owners_BR: Int[Array, "B R"], S: int) -> Float[Array, "B S"]:
    """Sums over the tokens of each document; those of owner 0 count nowhere."""
    mine_BSR = owners_BR[:, None] == jnp.arange(1, S + 1)[:, None]
    return jnp.sum(jnp.where(mine_BSR, x_BR[:, None], 0.0), axis=-1)
