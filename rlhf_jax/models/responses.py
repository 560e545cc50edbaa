"""Reading a model at response positions only: the head never runs on prompt tokens.

Rows are right-padded `prompt + response`. The hidden state at position p - 1 + r predicts response token r, so a
window of R positions that starts at the last prompt token holds all that is needed.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.objectives.logprobs import token_logprobs


def join(
    prompts_BP: Int[Array, "B P"],
    prompt_lengths_B: Int[Array, " B"],
    responses_BR: Int[Array, "B R"],
    response_lengths_B: Int[Array, " B"],
    pad_id: int,
) -> Int[Array, "B T"]:
    """Left-padded prompts and their responses as right-padded rows of P + R tokens. No token is re-encoded."""
    P = prompts_BP.shape[1]
    R = responses_BR.shape[1]
    both_BT = jnp.concatenate([prompts_BP, responses_BR], axis=1)
    # Shifting a row left by its padding makes prompt and response contiguous from column 0.
    columns_T = jnp.arange(P + R)
    source_BT = columns_T + (P - prompt_lengths_B)[:, None]
    shifted_BT = jnp.take_along_axis(both_BT, jnp.minimum(source_BT, P + R - 1), axis=1)
    lengths_B1 = (prompt_lengths_B + response_lengths_B)[:, None]
    return jnp.where(columns_T < lengths_B1, shifted_BT, pad_id)


def window(x_BT: Array, prompt_lengths_B: Int[Array, " B"], R: int, *, offset: int) -> Array:
    """x[b, prompt_length + offset + r] for r < R; x is [B, T] or [B, T, D]. Positions past T repeat the last."""
    T = x_BT.shape[1]
    index_BR = jnp.clip(prompt_lengths_B[:, None] + offset + jnp.arange(R), 0, T - 1)
    return jnp.take_along_axis(x_BT, index_BR.reshape(*index_BR.shape, *[1] * (x_BT.ndim - 2)), axis=1)


def response_mask(
    lengths_B: Int[Array, " B"], prompt_lengths_B: Int[Array, " B"], R: int
) -> Bool[Array, "B R"]:
    """True on the response tokens of each row, the end-of-sequence token included."""
    return jnp.arange(R) < (lengths_B - prompt_lengths_B)[:, None]


def response_logprobs(
    config: ModelConfig,
    params: decoder.Params,
    tokens_BT: Int[Array, "B T"],
    prompt_lengths_B: Int[Array, " B"],
    R: int,
    *,
    temperature: float | Float[Array, ""] = 1.0,
    chunk: int = 128,
) -> tuple[Float[Array, "B R"], Float[Array, "B R"]]:
    """(log-probs, entropies) of each response token at the sampling temperature (rule M5), float32."""
    hidden_BTD = decoder.hidden_states(config, params, tokens_BT)
    hidden_BRD = decoder.for_head(config, window(hidden_BTD, prompt_lengths_B, R, offset=-1))
    targets_BR = window(tokens_BT, prompt_lengths_B, R, offset=0)
    head_DV = decoder.head(config, params)
    return token_logprobs(
        hidden_BRD, head_DV, targets_BR, temperature=temperature, chunk=chunk, softcap=config.logit_softcap
    )


def response_values(
    config: ModelConfig,
    params: decoder.Params,
    tokens_BT: Int[Array, "B T"],
    prompt_lengths_B: Int[Array, " B"],
    R: int,
) -> Float[Array, "B R"]:
    """The value before each response token is emitted: V at the position that predicts it."""
    hidden_BTD = decoder.hidden_states(config, params, tokens_BT)
    return decoder.scalars(window(hidden_BTD, prompt_lengths_B, R, offset=-1), params)
