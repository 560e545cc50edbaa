"""The decoder: embeddings, scanned blocks, final norm; and the heads that read its hidden states.

Parameters are plain nested dicts. A language model is `{"embed"[, "positions"], "layers", "norm"[, "head"[,
"head_bias"]]}`; a scalar model (reward or value) is the same trunk with `{"score"}` instead of a head. Every leaf
of "layers" is stacked [L, ...].
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rlhf_jax.errors import UserError
from rlhf_jax.models.attention.attend import cap, causal_mask, within_window
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.layers import Block, Masks, Norm
from rlhf_jax.parallel.mesh import constrain, gathered

Params = dict
StackedKeyValue = tuple[Float[Array, "L B T G K"], Float[Array, "L B T G K"]]

_HEADS = ("head", "head_bias", "score", "thresholds")  # what a model has beside its trunk

# "dots" keeps products with weights; scores of attention have batch axes and are recomputed.
_REMAT = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Decoder(nn.Module):
    """The transformer without its heads: token ids to final hidden states, and the keys and values of every layer."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        tokens_BT: Int[Array, "B T"],
        positions_BT: Int[Array, "B T"],
        mask_BTS: Bool[Array, "B T S"] | None,
        segments_BT: Int[Array, "B T"] | None = None,
        roots_BT: Int[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], StackedKeyValue]:
        c = self.config
        # A table that is also the language head has that head's scale, so that first logits are of order 1.
        deviation = c.width**-0.5 if c.tie_embeddings else 1.0
        init = nn.with_logical_partitioning(nn.initializers.normal(deviation), ("vocab", "embed"))
        table_VD = self.param("embed", init, (c.vocab_size, c.width), jnp.float32)
        # Gathered over "embed" once: looking rows up in a table cut that way would re-cut every activation.
        table_VD = constrain(table_VD.astype(c.dtype), "vocab", "embed_act")
        learned_PD = None
        if c.positions == "learned":
            init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "embed"))
            rows = c.max_positions + c.position_offset
            learned_PD = self.param("positions", init, (rows, c.width), jnp.float32)
        x_BTD = embed(c, table_VD, learned_PD, tokens_BT, positions_BT)
        x_BTD = constrain(x_BTD, "batch", "length", "embed_act")
        # prevent_cse is for rematerialisation outside a scan; inside, its barriers only cost time.
        block = Block if c.remat == "none" else nn.remat(Block, prevent_cse=False, policy=_REMAT[c.remat])
        # One block is compiled and run L times, its parameters stacked: compile time
        # does not grow with depth. Positions and masks are the same for all layers;
        # where only some are windowed, each gets its flag.
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, 0 if c.mixed_layers else nn.broadcast),
            length=c.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, name="layers")
        local_L = jnp.asarray(c.local_layers) if c.mixed_layers else None
        masks = _masks(c, mask_BTS, segments_BT, roots_BT, positions_BT)
        x_BTD, keys_values = blocks(x_BTD, positions_BT, masks, local_L)
        return Norm(c, name="norm")(x_BTD), keys_values


def embed(
    config: ModelConfig,
    table_VD: Float[Array, "V D"],
    learned_PD: Float[Array, "P D"] | None,
    tokens_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
) -> Float[Array, "B T D"]:
    """Token embeddings in the table's dtype, with learned positions where the config has them."""
    x_BTD = table_VD[tokens_BT]
    if config.embed_scale != 1.0:
        x_BTD = x_BTD * jnp.asarray(config.embed_scale, x_BTD.dtype)
    if learned_PD is None:
        return x_BTD
    check_length(config, tokens_BT.shape[1])
    return x_BTD + learned_PD.astype(x_BTD.dtype)[positions_BT + config.position_offset]


def check_length(config: ModelConfig, T: int) -> None:
    """Raises UserError if learned positions end before T: a lookup past the table would repeat its last row."""
    if config.positions == "learned" and config.max_positions < T:
        raise UserError(
            f"sequences of {T} tokens: the {config.family} model has {config.max_positions} learned positions; "
            f"shorten prompts or responses to {config.max_positions} tokens together, or take another model"
        )


def _masks(
    config: ModelConfig,
    mask_BTS: Bool[Array, "B T S"] | None,
    segments_BT: Int[Array, "B T"] | None,
    roots_BT: Int[Array, "B T"] | None,
    positions_BT: Int[Array, "B T"],
) -> Masks:
    B, T = positions_BT.shape
    # Nothing is beyond the window: the layers are plainly causal, and fused kernels can compute them.
    if not any(config.local_layers) or config.window >= T:
        return Masks(mask_BTS, segments_BT=segments_BT, roots_BT=roots_BT)
    if segments_BT is not None:
        mask_BTS = causal_mask(B, T, segments_BT, roots_BT)
    at_BT = None if roots_BT is None else positions_BT
    local_BTS = within_window(mask_BTS, B, T, config.window, at_BT)
    if all(config.local_layers):
        return Masks(local_BTS)
    return Masks(causal_mask(B, T) if mask_BTS is None else mask_BTS, local_BTS)


def init(config: ModelConfig, key: Key[Array, ""], *, scalar: bool = False) -> Params:
    """Fresh parameters, boxed with their logical axes (`flax.linen.meta.unbox` strips them).

    Linear layers and the language head are normal(0, 1/sqrt(fan_in)); embeddings are normal(0, 1), or those
    of the language head when the two are tied; the score head is normal(0, 1/sqrt(D + 1)), as in OpenAI's PPO
    code. Small models with embeddings of 0.02 (Llama's) do not learn to copy from a prompt.
    """
    trunk_key, head_key = jax.random.split(key)
    tokens_11 = jnp.zeros((1, 1), jnp.int32)
    params = Decoder(config).init(trunk_key, tokens_11, tokens_11, None)["params"]
    if scalar:
        score_D = jax.random.normal(head_key, (config.width,), jnp.float32) * (config.width + 1) ** -0.5
        params["score"] = nn.LogicallyPartitioned(score_D, ("embed",))
    elif not config.tie_embeddings:
        head_DV = jax.random.normal(head_key, (config.width, config.vocab_size)) * config.width**-0.5
        params["head"] = nn.LogicallyPartitioned(head_DV, ("embed", "vocab"))
    if config.head_bias and not scalar:
        params["head_bias"] = nn.LogicallyPartitioned(jnp.zeros(config.vocab_size, jnp.float32), ("vocab",))
    return params


def shapes(config: ModelConfig, *, scalar: bool = False) -> Params:
    """Shapes, dtypes and logical axes of the parameters that `init` makes, without computing any."""
    # The tree is copied, so that a caller who changes its dicts does not change the cache.
    return jax.tree.map(lambda x: x, _traced_shapes(config, scalar))


# A run asks for the shapes dozens of times, and every answer is a trace of the whole model.
@functools.cache
def _traced_shapes(config: ModelConfig, scalar: bool) -> Params:
    return jax.eval_shape(lambda: init(config, jax.random.key(0), scalar=scalar))


def hidden_states(
    config: ModelConfig,
    params: Params,
    tokens_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"] | None = None,
    mask_BTS: Bool[Array, "B T S"] | None = None,
    segments_BT: Int[Array, "B T"] | None = None,
    roots_BT: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T D"]:
    """Final hidden states. Without positions and mask, rows are right-padded and attention is causal.

    With segments, and positions that fit them, it is causal within each segment: rows are packed. With roots, a token
    sees the segment that is its root, too, such as a prompt that several responses share.
    """
    if positions_BT is None:
        positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    how = (positions_BT, mask_BTS, segments_BT, roots_BT)
    return Decoder(config).apply({"params": trunk(params)}, tokens_BT, *how)[0]


def hidden_and_cache(
    config: ModelConfig,
    params: Params,
    tokens_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
    mask_BTS: Bool[Array, "B T S"],
) -> tuple[Float[Array, "B T D"], StackedKeyValue]:
    """As `hidden_states`, with every layer's keys and values, stacked [L, B, T, G, K]."""
    return Decoder(config).apply({"params": trunk(params)}, tokens_BT, positions_BT, mask_BTS)


def trunk(params: Params) -> Params:
    """The parameters of a model without those of its heads."""
    return {name: leaf for name, leaf in params.items() if name not in _HEADS}


def head(config: ModelConfig, params: Params) -> Float[Array, "D V"]:
    """The output matrix of a language model, in the compute dtype. A bias is one more row of it (see `for_head`)."""
    matrix_DV = params["embed"].T if config.tie_embeddings else params["head"]
    # Gathered once: cut over "embed", it would be gathered for every chunk of positions, and again going backward.
    matrix_DV = gathered(matrix_DV.astype(config.dtype), "embed", "vocab")
    # As one more row the bias goes through the chunked log-probabilities and their hand-written backward pass
    # like any other weight; only GPT-J has one.
    if config.head_bias:
        matrix_DV = jnp.concatenate([matrix_DV, params["head_bias"][None].astype(config.dtype)])
    return matrix_DV


def for_head(config: ModelConfig, hidden_xD: Float[Array, "*x D"]) -> Float[Array, "*x E"]:
    """Hidden states as `head` takes them: with a 1 appended where the head has a bias."""
    if not config.head_bias:
        return hidden_xD
    return jnp.concatenate([hidden_xD, jnp.ones_like(hidden_xD[..., :1])], -1)


def logits(
    config: ModelConfig, head_DV: Float[Array, "D V"], hidden_xD: Float[Array, "*x E"]
) -> Float[Array, "*x V"]:
    """float32 logits of final hidden states; `head_DV` is what `head` returns."""
    # Summed in float32 and left there: rounded to bfloat16 first, logits would be off by hundredths, and the sampler
    # would not be the policy that the losses read.
    logits_xV = jnp.matmul(for_head(config, hidden_xD), head_DV, preferred_element_type=jnp.float32)
    return cap(logits_xV, config.logit_softcap)


def scalars(hidden_BTD: Float[Array, "*batch D"], params: Params) -> Float[Array, "*batch"]:
    """One float32 number per position from the score head: rewards or values."""
    # In float32: the rewards of two similar responses differ by less than a bfloat16 step.
    return jnp.einsum("...d,d->...", hidden_BTD.astype(jnp.float32), params["score"])


def value_from_reward(params: Params) -> Params:
    """A value model from a reward model: its trunk and a zero head, so every first value is 0 (AlpacaFarm)."""
    return {**trunk(params), "score": jnp.zeros_like(params["score"])}


def reward_from_language(config: ModelConfig, params: Params, key: Key[Array, ""]) -> Params:
    """A reward model from a language model: its trunk and a fresh score head ~ N(0, 1/sqrt(D + 1))."""
    score_D = jax.random.normal(key, (config.width,), jnp.float32) * (config.width + 1) ** -0.5
    return {**trunk(params), "score": score_D}


def increasing(raw_K: Float[Array, " K"]) -> Float[Array, " K"]:
    """Thresholds in order, of numbers that may be any: the first, and above it steps of softplus(the others)."""
    return jnp.cumsum(jnp.concatenate([raw_K[:1], jax.nn.softplus(raw_K[1:])]))


def last_token_scores(
    hidden_BTD: Float[Array, "B T D"], params: Params, lengths_B: Int[Array, " B"]
) -> Float[Array, " B"]:
    """The score at each row's last real token, found by length and never by token id, since pads may equal EOS."""
    # A length of 0 would give index -1, which is read as the last column.
    last_B11 = jnp.maximum(lengths_B - 1, 0)[:, None, None]
    return scalars(jnp.take_along_axis(hidden_BTD, last_B11, axis=1)[:, 0], params)
