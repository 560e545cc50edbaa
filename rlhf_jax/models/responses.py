"""Log-probabilities, values and scores of responses: the head runs at response positions only, never on the prompt.

Rows are right-padded `prompt + response`. The hidden state at position p - 1 + r predicts response token r, so a
window of R positions that starts at the last prompt token holds all that is needed.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.objectives.logprobs import Head, Ways, head_logprobs
from rlhf_jax.parallel.mesh import constrain, row_ways, ways_together

Batch = dict[str, Array]


def join(
    prompts_BP: Int[Array, "B P"],
    prompt_lengths_B: Int[Array, " B"],
    responses_BR: Int[Array, "B R"],
    response_lengths_B: Int[Array, " B"],
    pad_id: int,
) -> Int[Array, "B T"]:
    """Joins left-padded prompts and their responses to right-padded rows of P + R tokens, without re-encoding any."""
    P = prompts_BP.shape[1]
    R = responses_BR.shape[1]
    both_BT = jnp.concatenate([prompts_BP, responses_BR], axis=1)
    # Shifting a row left by its padding makes prompt and response contiguous from column 0.
    columns_T = jnp.arange(P + R)
    source_BT = columns_T + (P - prompt_lengths_B)[:, None]
    shifted_BT = jnp.take_along_axis(both_BT, jnp.minimum(source_BT, P + R - 1), axis=1)
    lengths_B1 = (prompt_lengths_B + response_lengths_B)[:, None]
    return jnp.where(columns_T < lengths_B1, shifted_BT, pad_id)


def without_column(
    tokens_BT: Int[Array, "B T"], prompt_lengths_B: Int[Array, " B"], column: int
) -> tuple[Int[Array, "B T"], Int[Array, " B"]]:
    """Takes a token out of every prompt: (rows as wide as before, prompt lengths)."""
    # What comes in at the right is behind every row's end.
    rest = (tokens_BT[:, :column], tokens_BT[:, column + 1 :], tokens_BT[:, -1:])
    return jnp.concatenate(rest, axis=1), prompt_lengths_B - 1


def window(x_BT: Array, prompt_lengths_B: Int[Array, " B"], R: int, *, offset: int) -> Array:
    """Cuts R positions out of each row: x[b, prompt_length + offset + r] for r < R; x is [B, T] or [B, T, D].

    Positions past T repeat the last one.
    """
    T = x_BT.shape[1]
    # Clipped, so that windows of short rows repeat a token instead of reading NaN; masks leave it out.
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
    """(log-probs, entropies) of each response token, float32.

    `temperature` must be the one that the tokens were sampled with, in old, new and reference log-probs alike.
    """
    hidden_BTD = decoder.hidden_states(config, params, tokens_BT)
    head = _window_head(config, params, hidden_BTD, prompt_lengths_B, R)
    targets_BR = window(tokens_BT, prompt_lengths_B, R, offset=0)
    return head_logprobs(head, targets_BR, temperature=temperature, chunk=chunk)


def response_head(
    config: ModelConfig,
    params: decoder.Params,
    tokens_BT: Int[Array, "B T"],
    prompt_lengths_B: Int[Array, " B"],
    R: int,
) -> Head:
    """What gives the logits of the R response positions of each row: hidden states before each token, and the head."""
    hidden_BTD = decoder.hidden_states(config, params, tokens_BT)
    return _window_head(config, params, hidden_BTD, prompt_lengths_B, R)


def _window_head(
    config: ModelConfig,
    params: decoder.Params,
    hidden_BTD: Float[Array, "B T D"],
    prompt_lengths_B: Int[Array, " B"],
    R: int,
) -> Head:
    # The window is cut before the head: the product with [D, V] is the largest of the
    # model, and prompts are often longer than responses.
    return _head_at(config, params, window(hidden_BTD, prompt_lengths_B, R, offset=-1))


def _head_at(config: ModelConfig, params: decoder.Params, hidden_BRD: Float[Array, "B R D"]) -> Head:
    hidden_BRE, head_EV = decoder.for_head(config, hidden_BRD), decoder.head(config, params)
    return Head(
        hidden_BRE, head_EV, config.logit_softcap, Ways(row_ways(len(hidden_BRE)), _apart, ways_together)
    )


def _apart(x_WDV: Float[Array, "W D V"]) -> Float[Array, "W D V"]:
    return constrain(x_WDV, "batch", "embed_act", "vocab")


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


# Log-probabilities and scores on packed rows, where each document is computed as if it were alone in the row.
#
# The arrays are those of `data.batches`: segments number the documents of a row from 1 (0 is padding), and positions
# start at 0 in each document. Where documents share their beginning (`data.shared_prompts`) it is a segment of its own,
# the root of theirs, and positions go on behind it in each.


def packed_hidden(config: ModelConfig, params: decoder.Params, batch: Batch) -> Float[Array, "B T D"]:
    """Final hidden states of packed rows."""
    documents = {"segments_BT": batch["segments"], "roots_BT": batch.get("roots")}
    return decoder.hidden_states(config, params, batch["tokens"], batch["positions"], **documents)


def packed_logprobs(
    config: ModelConfig, params: decoder.Params, batch: Batch, *, chunk: int = 128
) -> tuple[Float[Array, "B R"], Float[Array, "B R"]]:
    """(log-probs, entropies) of the tokens in the target columns, float32. The head runs on no other position.

    A token is predicted by the column before it, which belongs to its document: first tokens are no targets. Only the
    first token behind a shared prompt is predicted by the prompt's end, wherever that stands; so `before` says it all.
    """
    tokens_BT, targets_BR = batch["tokens"], batch["targets"]
    hidden_BTD = packed_hidden(config, params, batch)
    # Targets of 0 fill up the row; they have no column before them, and owner 0.
    before_BR1 = jnp.maximum(batch.get("before", targets_BR - 1), 0)[..., None]
    hidden_BRD = jnp.take_along_axis(hidden_BTD, before_BR1, axis=1)
    wanted_BR = jnp.take_along_axis(tokens_BT, targets_BR, axis=1)
    return head_logprobs(_head_at(config, params, hidden_BRD), wanted_BR, chunk=chunk)


def packed_scores(config: ModelConfig, params: decoder.Params, batch: Batch) -> Float[Array, "B S"]:
    """The score of each document, read at its last token."""
    hidden_BTD = packed_hidden(config, params, batch)
    return decoder.scalars(jnp.take_along_axis(hidden_BTD, batch["lasts"][..., None], axis=1), params)


def by_document(x_BR: Float[Array, "B R"], owners_BR: Int[Array, "B R"], S: int) -> Float[Array, "B S"]:
    """Sums x over the trained tokens of each document; those of owner 0 count nowhere."""
    # A comparison and a sum instead of a scatter (jax.ops.segment_sum), since S is small.
    mine_BSR = owners_BR[:, None] == jnp.arange(1, S + 1)[:, None]
    return jnp.sum(jnp.where(mine_BSR, x_BR[:, None], 0.0), axis=-1)


# Functions of a whole batch, as losses call them, for plain and packed rows. Batches are dicts of arrays with the
# batch as first axis. Rows of weight 0 fill up an evaluation batch and count nowhere. Packed rows (`data.batches`)
# hold several documents, told apart by their segments; each document gives what it would give alone.


def row_logprobs(
    config: ModelConfig, params: decoder.Params, batch: Batch, R: int, chunk: int
) -> tuple[Array, Array, Array]:
    """(log-probs, entropies, mask) of the tokens that are trained, each [B, R]; rows of weight 0 are masked out.

    Batch: tokens, lengths, prompt_lengths[, trained][, weight]; or packed rows.
    """
    score = packed_row_logprobs if "segments" in batch else plain_row_logprobs
    logprobs_BR, entropy_BR, mask_BR = score(config, params, batch, R, chunk)
    return logprobs_BR, entropy_BR, mask_BR & (row_weight(batch) > 0)[:, None]


def row_weight(batch: Batch) -> Array:
    """1 for every row that counts, 0 for those that fill up the last batch of an evaluation [B]."""
    rows = batch.get("chosen_lengths", batch.get("lengths", batch.get("documents")))
    return batch.get("weight", jnp.ones(rows.shape, jnp.float32))


def plain_row_logprobs(
    config: ModelConfig, params: decoder.Params, batch: Batch, R: int, chunk: int, *, temperature: float = 1.0
) -> tuple[Array, Array, Array]:
    """`row_logprobs` of rows that hold one sequence each; rows of weight 0 are not masked out here.

    Of arrays of fewer than R columns the window is as long as they are.
    """
    mask_BR = plain_row_mask(batch, R)
    about = (batch["tokens"], batch["prompt_lengths"], mask_BR.shape[1])
    return *response_logprobs(config, params, *about, temperature=temperature, chunk=chunk), mask_BR


def plain_row_mask(batch: Batch, R: int) -> Array:
    """Which tokens of the window of each row are trained [B, R]; rows that hold one sequence each."""
    # No response is longer than its row, and evaluations cut the arrays of short ones.
    R = min(R, batch["tokens"].shape[1])
    mask_BR = response_mask(batch["lengths"], batch["prompt_lengths"], R)
    # In a conversation the window begins at the assistant's first turn, and users speak in between.
    if "trained" in batch:
        mask_BR &= window(batch["trained"], batch["prompt_lengths"], R, offset=0)
    return mask_BR


def packed_row_logprobs(
    config: ModelConfig, params: decoder.Params, batch: Batch, R: int, chunk: int
) -> tuple[Array, Array, Array]:
    """`row_logprobs` of packed rows; rows of weight 0 are not masked out here."""
    logprobs_BR, entropy_BR = packed_logprobs(config, params, batch, chunk=chunk)
    return logprobs_BR, entropy_BR, batch["owners"] > 0
