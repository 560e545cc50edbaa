"""The decode engine: prefill the prompts, then one token at a time, and fewer rows as they end."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, ScalarLike

from rlhf_jax.errors import UserError
from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.layers import Block, KeyValue, Masks, Norm
from rlhf_jax.models.placement import both_ways
from rlhf_jax.parallel.mesh import constrain
from rlhf_jax.parallel.microbatches import in_parts
from rlhf_jax.sampling import compaction
from rlhf_jax.sampling.choose import Sampling, choose

CACHE_AXES = ("batch", "kv_heads", "length", "head_dim")  # The axes of a layer's cached keys and values.


class Generation(NamedTuple):
    """The responses that the decode engine has sampled.

    Attributes:
      tokens_BR: the responses, pads after the end.
      logprobs_BR: log-prob of each token under the sampling distribution; 0 after the end.
      mask_BR: True on response tokens, the end token included.
      lengths_B: response lengths, the end token included.
      ended_B: whether the row produced an end token.
      steps: decode steps run (<= R for each micro-batch: decoding stops when all rows have ended).
    """

    tokens_BR: Int[Array, "B R"]
    logprobs_BR: Float[Array, "B R"]
    mask_BR: Bool[Array, "B R"]
    lengths_B: Int[Array, " B"]
    ended_B: Bool[Array, " B"]
    steps: Int[Array, ""]


class _Loop(NamedTuple):
    t: Int[Array, ""]
    logits_BV: Float[Array, "B V"]
    tokens_BR: Int[Array, "B R"]
    logprobs_BR: Float[Array, "B R"]
    lengths_B: Int[Array, " B"]
    done_B: Bool[Array, " B"]
    cache: tuple[KeyValue, ...]


# What a row has to show when it leaves the batch.
_RESULTS = ("tokens_BR", "logprobs_BR", "lengths_B", "done_B")


class _Given(NamedTuple):
    """What each row started with: its number, the columns that are real, the length of its prompt."""

    rows_B: Int[Array, " B"]
    real_BS: Bool[Array, "B S"]
    lengths_B: Int[Array, " B"]


def _taken(given: _Given, loop: _Loop, places_Gb: Int[Array, "G b"]) -> tuple[_Given, _Loop]:
    """The same with these rows alone."""
    given = _Given(*(compaction.taken(x, places_Gb) for x in given))
    names = {"logits_BV": ("vocab",)}
    rows = {
        x: compaction.taken(getattr(loop, x), places_Gb, *names.get(x, ())) for x in ("logits_BV", *_RESULTS)
    }
    cache = jax.tree.map(lambda x: compaction.taken(x, places_Gb, *CACHE_AXES[1:]), loop.cache)
    return given, _Loop(t=loop.t, cache=cache, **rows)


@partial(jax.jit, static_argnames=("config", "max_new_tokens", "samples", "microbatches"))
def generate(
    config: ModelConfig,
    params: decoder.Params,
    tokens_BP: Int[Array, "B P"],
    lengths_B: Int[Array, " B"],
    rows_B: Int[Array, " B"],
    key: Key[Array, ""],
    sampling: Sampling,
    end_ids_E: Int[Array, " E"],
    pad_id: ScalarLike,
    *,
    max_new_tokens: int,
    samples: int = 1,
    microbatches: int = 1,
) -> Generation:
    """Samples responses, those of one prompt next to each other: [B * samples, R].

    When half the rows have ended, the others go on in a batch of half the size (`compaction`).

    Args:
      params: with stacked layers, or with layers apart, as `placement.rollout_copier` gives them.
      tokens_BP: prompts, left-padded to one bucket P.
      lengths_B: real prompt lengths; the masks come from these, never from token ids.
      rows_B: global row numbers. Response r at step t draws from fold_in(fold_in(key, r), t), so a sample does not
        depend on how rows are batched or sharded; r is row * samples + the number of the sample.
      end_ids_E: the tokens of which any ends a response.
      sampling, end_ids_E, pad_id: traced; changing them compiles nothing.
      max_new_tokens: R, static.
      samples: responses of each prompt, static. They share its prefill.
      microbatches: the prompts are worked through in this many parts, static; one part's cache exists at a time.
    """
    if microbatches > 1:
        given = (key, sampling, end_ids_E, pad_id)
        how = {"max_new_tokens": max_new_tokens, "samples": samples}
        rows = (tokens_BP, lengths_B, rows_B)
        return in_parts(lambda part: generate(config, params, *part, *given, **how), rows, microbatches)
    B, P = tokens_BP.shape
    S = P + max_new_tokens
    decoder.check_length(config, S)
    # Prompts are left-padded, so that every row writes its next token to the same column P + t: a slice
    # update, where right-padded rows would need a scatter.
    first_B = P - lengths_B
    columns_S = jnp.arange(S)
    real_BS = columns_S >= first_B[:, None]
    # The stack of layers is for the prompts, whose prefill scans it. Decoding reads the layers one by one: where they
    # come apart, as in a copy for sampling, a stack made here is gone when the cache is there.
    params, layers = both_ways(config, params)
    logits_BV, cache = prefill(config, params, tokens_BP, first_B, real_BS, S)
    # From here on a row is a response. The prompt was computed once for all of its responses.
    if samples > 1:
        several = partial(jnp.repeat, repeats=samples, axis=0)
        logits_BV, real_BS, lengths_B = map(several, (logits_BV, real_BS, lengths_B))
        cache = jax.tree.map(lambda x: constrain(several(x), *CACHE_AXES), cache)
        rows_B = (rows_B[:, None] * samples + jnp.arange(samples)).reshape(-1)
        B = B * samples
    head_DV = decoder.head(config, params)
    groups = compaction.groups_of(B)

    def step(given: _Given, keys_B: Key[Array, " B"], loop: _Loop) -> _Loop:
        keys_now_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, loop.t)
        picked_B, logprobs_B = choose(loop.logits_BV, keys_now_B, sampling)
        # Rows that have ended go on with pads until they leave the batch, because shapes are fixed.
        token_B = jnp.where(loop.done_B, pad_id, picked_B)
        column = P + loop.t
        # real_BS is True up to the end of the cache; columns that are not yet written are cut off here.
        mask_B1S = (given.real_BS & (columns_S <= column))[:, None]
        positions_B1 = (given.lengths_B + loop.t)[:, None]
        hidden_B1D, cache = decode_tokens(
            config, params, layers, token_B[:, None], positions_B1, mask_B1S, loop.cache, column
        )
        return _Loop(
            t=loop.t + 1,
            logits_BV=decoder.logits(config, head_DV, hidden_B1D[:, 0]),
            tokens_BR=loop.tokens_BR.at[:, loop.t].set(token_B),
            logprobs_BR=loop.logprobs_BR.at[:, loop.t].set(jnp.where(loop.done_B, 0.0, logprobs_B)),
            # Counted before done_B changes, so the end token belongs to the response. A pad that equals an
            # end token does no harm: its row is done already.
            lengths_B=loop.lengths_B + ~loop.done_B,
            done_B=loop.done_B | jnp.isin(token_B, end_ids_E),
            cache=cache,
        )

    def finished(given: _Given, loop: _Loop, sizes: tuple[int, ...]) -> _Loop:
        """Goes on until all rows have ended: here while they are more than the next stage has room for."""
        smaller = sizes[1] if len(sizes) > 1 else 0

        def unfinished(loop: _Loop) -> Bool[Array, ""]:
            return (loop.t < max_new_tokens) & (compaction.most_alive(loop.done_B, groups) > smaller)

        keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, given.rows_B)
        # A while_loop, not a scan: it stops when enough rows have ended, and nothing is differentiated.
        loop = jax.lax.while_loop(unfinished, partial(step, given, keys_B), loop)
        if not smaller:
            return loop
        places_Gb = compaction.alive_first(loop.done_B, groups, smaller)
        part = finished(*_taken(given, loop, places_Gb), sizes[1:])
        back = {x: compaction.put_back(getattr(loop, x), getattr(part, x), places_Gb) for x in _RESULTS}
        return loop._replace(t=part.t, **back)

    loop = finished(
        _Given(rows_B, real_BS, lengths_B),
        _Loop(
            t=jnp.int32(0),
            logits_BV=logits_BV,
            tokens_BR=jnp.full((B, max_new_tokens), pad_id, jnp.int32),
            logprobs_BR=jnp.zeros((B, max_new_tokens), jnp.float32),
            lengths_B=jnp.zeros((B,), jnp.int32),
            done_B=jnp.zeros((B,), bool),
            cache=cache,
        ),
        compaction.stages(B, max_new_tokens, groups, config.layers),
    )
    mask_BR = jnp.arange(max_new_tokens) < loop.lengths_B[:, None]
    return Generation(loop.tokens_BR, loop.logprobs_BR, mask_BR, loop.lengths_B, loop.done_B, loop.t)


def prefill(
    config: ModelConfig,
    params: decoder.Params,
    tokens_BP: Int[Array, "B P"],
    first_B: Int[Array, " B"],
    real_BS: Bool[Array, "B S"],
    S: int,
) -> tuple[Float[Array, "B V"], tuple[KeyValue, ...]]:
    """Logits after the last prompt token, and one cache of S columns per layer."""
    P = tokens_BP.shape[1]
    # Pads get position 0: some valid position, which no real token looks at.
    positions_BP = jnp.maximum(jnp.arange(P) - first_B[:, None], 0)
    causal_PP = jnp.tril(jnp.ones((P, P), bool))
    # A pad query sees nothing: its softmax is uniform, finite, and read by no real token.
    mask_BPP = causal_PP & real_BS[:, None, :P]
    hidden_BPD, (keys, values) = decoder.hidden_and_cache(config, params, tokens_BP, positions_BP, mask_BPP)
    pad = ((0, 0), (0, 0), (0, S - P), (0, 0))

    def columns(x_BPGK: Float[Array, "B P G K"]) -> Float[Array, "B G S K"]:
        # Left to itself, XLA keeps the cache in a sharding that costs all-reduces in every step.
        return constrain(jnp.pad(x_BPGK.swapaxes(1, 2), pad), *CACHE_AXES)

    cache = tuple((columns(keys[i]), columns(values[i])) for i in range(config.layers))
    return decoder.logits(config, decoder.head(config, params), hidden_BPD[:, -1]), cache


def decode_tokens(
    config: ModelConfig,
    params: decoder.Params,
    layers: Sequence[decoder.Params],
    tokens_B1: Int[Array, "B 1"],
    positions_B1: Int[Array, "B 1"],
    mask_B1S: Bool[Array, "B 1 S"],
    cache: tuple[KeyValue, ...],
    column: Int[Array, ""],
) -> tuple[Float[Array, "B 1 D"], tuple[KeyValue, ...]]:
    """Runs one token per row through every layer; returns its hidden states and the updated cache.

    `layers` are unstacked outside the decode loop, because slicing the stack inside would copy it for every token.
    A windowed layer keeps the keys of all columns and looks at the last `window` of them.
    """
    table_VD = params["embed"].astype(config.dtype)
    x_B1D = decoder.embed(config, table_VD, params.get("positions"), tokens_B1, positions_B1)
    near_B1S = mask_B1S
    if config.window:
        near_B1S = mask_B1S & (jnp.arange(mask_B1S.shape[2]) > column - config.window)
    local_layers = config.local_layers or (False,) * config.layers
    written = []
    for layer, local, keys_values in zip(layers, local_layers, cache, strict=True):
        masks = Masks(near_B1S if local else mask_B1S)
        x_B1D, keys_values = Block(config).apply(
            {"params": layer}, x_B1D, positions_B1, masks, local, keys_values, column
        )
        written.append(keys_values)
    return Norm(config).apply({"params": params["norm"]}, x_B1D), tuple(written)


def check_finite(logprobs_BR: np.ndarray, model: str) -> None:
    """Raises UserError if any sampled token has a log-probability of NaN or infinity: its logits were not finite."""
    wrong_B = ~np.isfinite(logprobs_BR).all(axis=1)
    if wrong_B.any():
        raise UserError(
            f"{model}: its logits are not finite in {wrong_B.sum()} of {len(wrong_B)} responses, so its samples mean "
            "nothing; its weights are too large for the dtype, or its training has diverged: use "
            "model.dtype=float32 or an earlier checkpoint"
        )
