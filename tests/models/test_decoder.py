"""The decoder against an independent NumPy one, and the equalities that padding and scanning must keep."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.models import decoder
from rlhf_jax.models.attention.attend import causal_attention
from rlhf_jax.models.config import ModelConfig

CONFIG = ModelConfig(vocab_size=61, width=32, layers=3, heads=4, kv_heads=2, head_dim=8, ff=48)


def params_of(config, seed=0, scalar=False):
    return nn.unbox(decoder.init(config, jax.random.key(seed), scalar=scalar))


def numpy_hidden(config, params, tokens_T):
    """One row, float64, loops where the model has einsums."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * scale

    def rotate(x_TK):
        half = config.head_dim // 2
        angle = np.arange(len(x_TK))[:, None] * config.rope_theta ** (-np.arange(half) / half)
        a, b = x_TK[:, :half], x_TK[:, half:]
        return np.concatenate(
            [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], 1
        )

    x = p["embed"][tokens_T]
    T = len(tokens_T)
    for i in range(config.layers):
        layer = jax.tree.map(lambda w, i=i: w[i], p["layers"])
        y, mixed = norm(x, layer["attention_norm"]["scale"]), np.zeros_like(x)
        for h in range(config.heads):
            g = h // (config.heads // config.kv_heads)
            q = rotate(y @ layer["attention"]["q"][:, h])
            k = rotate(y @ layer["attention"]["k"][:, g])
            v = y @ layer["attention"]["v"][:, g]
            scores = q @ k.T / np.sqrt(config.head_dim)
            scores[np.triu_indices(T, 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            mixed += weights / weights.sum(-1, keepdims=True) @ v @ layer["attention"]["o"][h]
        x = x + mixed
        y = norm(x, layer["mlp_norm"]["scale"])
        gate = y @ layer["mlp"]["gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (y @ layer["mlp"]["up"])) @ layer["mlp"]["down"]
    return norm(x, p["norm"]["scale"])


def test_hidden_states_equal_an_independent_float64_decoder():
    params = params_of(CONFIG)
    tokens_BT = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 11))
    hidden_BTD = decoder.hidden_states(CONFIG, params, jnp.asarray(tokens_BT, jnp.int32))
    for b in range(2):
        np.testing.assert_allclose(hidden_BTD[b], numpy_hidden(CONFIG, params, tokens_BT[b]), atol=2e-5)


def test_pads_on_the_right_change_nothing_for_real_tokens():
    params = params_of(CONFIG)
    tokens_BT = jnp.asarray(np.random.default_rng(1).integers(0, CONFIG.vocab_size, (3, 9)), jnp.int32)
    padded_BT = jnp.pad(tokens_BT, ((0, 0), (0, 7)), constant_values=5)
    np.testing.assert_allclose(
        decoder.hidden_states(CONFIG, params, padded_BT)[:, :9],
        decoder.hidden_states(CONFIG, params, tokens_BT),
        atol=1e-5,
    )


@pytest.mark.parametrize("left", [1, 4])
def test_pads_on_the_left_change_nothing_for_real_tokens(left):
    params = params_of(CONFIG)
    tokens_BT = jnp.asarray(np.random.default_rng(2).integers(0, CONFIG.vocab_size, (2, 6)), jnp.int32)
    padded_BT = jnp.pad(tokens_BT, ((0, 0), (left, 0)), constant_values=3)
    T = left + 6
    positions_BT = jnp.broadcast_to(jnp.maximum(jnp.arange(T) - left, 0), (2, T))
    mask_BTT = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)) & (jnp.arange(T) >= left), (2, T, T))
    hidden_BTD = decoder.hidden_states(CONFIG, params, padded_BT, positions_BT, mask_BTT)
    np.testing.assert_allclose(
        hidden_BTD[:, left:], decoder.hidden_states(CONFIG, params, tokens_BT), atol=1e-5
    )
    assert bool(jnp.isfinite(hidden_BTD).all())


@pytest.mark.parametrize("window", [4, 5])
def test_a_row_one_longer_than_the_window_does_not_see_its_first_token(window):
    config = dataclasses.replace(CONFIG, layers=1, window=window, local_layers=(True,))
    params = params_of(config)
    rows_BT = jnp.array([[1, 2, 3, 4, 5], [9, 2, 3, 4, 5]], jnp.int32)
    one, other = decoder.hidden_states(config, params, rows_BT)
    apart = np.abs(one - other).max(-1)
    assert (apart[:4] > 1e-3).all() and (apart[4] > 1e-3) == (window == 5)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_no_gradient(remat):
    params = params_of(CONFIG)
    tokens_BT = jnp.ones((2, 5), jnp.int32)

    def loss(config, p):
        return jnp.sum(decoder.hidden_states(config, p, tokens_BT) ** 2)

    plain = jax.grad(lambda p: loss(CONFIG, p))(params)
    again = jax.grad(lambda p: loss(dataclasses.replace(CONFIG, remat=remat), p))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), plain, again)


def test_scores_are_read_at_the_last_real_token_whatever_the_pads():
    params = params_of(CONFIG, scalar=True)
    rng = np.random.default_rng(3)
    rows = [rng.integers(0, CONFIG.vocab_size, n) for n in (4, 9, 1)]
    tokens_BT = np.full((3, 9), 7, np.int32)
    for b, row in enumerate(rows):
        tokens_BT[b, : len(row)] = row
    lengths_B = jnp.array([4, 9, 1], jnp.int32)
    hidden_BTD = decoder.hidden_states(CONFIG, params, jnp.asarray(tokens_BT))
    scores_B = decoder.last_token_scores(hidden_BTD, params, lengths_B)
    for b, row in enumerate(rows):
        alone = decoder.hidden_states(CONFIG, params, jnp.asarray(row[None], jnp.int32))
        np.testing.assert_allclose(scores_B[b], alone[0, -1] @ params["score"], atol=1e-5)


def test_a_value_model_starts_at_zero_on_the_reward_trunk():
    reward = params_of(CONFIG, scalar=True)
    value = decoder.value_from_reward(reward)
    hidden_BTD = decoder.hidden_states(CONFIG, value, jnp.ones((1, 4), jnp.int32))
    assert float(jnp.abs(decoder.scalars(hidden_BTD, value)).max()) == 0.0
    assert value["embed"] is reward["embed"]


def test_weights_are_born_at_their_scales_and_no_two_layers_alike():
    """As `decoder.init` says; a standard deviation of n numbers is known to 1 / sqrt(2 n) of itself."""
    wide = dataclasses.replace(CONFIG, vocab_size=200, width=256, ff=128)
    made = {
        "own head": jax.device_get(params_of(wide)),
        "tied": jax.device_get(params_of(dataclasses.replace(wide, tie_embeddings=True))),
        "scalar": jax.device_get(params_of(wide, scalar=True)),
    }
    own, layers = made["own head"], made["own head"]["layers"]
    wanted = [
        (own["embed"], 1.0),
        (own["head"], 256**-0.5),
        (made["tied"]["embed"], 256**-0.5),
        (made["scalar"]["score"], 257**-0.5),
        (layers["attention"]["q"], 256**-0.5),
        (layers["attention"]["o"], 32**-0.5),
        (layers["mlp"]["gate"], 256**-0.5),
        (layers["mlp"]["down"], 128**-0.5),
    ]
    for found, deviation in wanted:
        assert found.std() == pytest.approx(deviation, rel=4 / np.sqrt(2 * found.size))
    assert np.abs(np.corrcoef(layers["attention"]["q"].reshape(3, -1)) - np.eye(3)).max() < 0.1
    assert (own["norm"]["scale"] == 1).all() and (layers["mlp_norm"]["scale"] == 1).all()


def test_a_reward_model_starts_with_a_small_random_head_on_the_language_models_trunk():
    wide = dataclasses.replace(CONFIG, width=256, layers=1)
    language = params_of(wide)
    one, other = (decoder.reward_from_language(wide, language, jax.random.key(seed)) for seed in (0, 1))
    assert one["score"].std() == pytest.approx(257**-0.5, rel=4 / np.sqrt(2 * 256))
    assert np.abs(one["score"] - other["score"]).max() > 0.01
    assert {**decoder.trunk(language), "score": 0}.keys() == one.keys()
    assert one["embed"] is language["embed"]


def test_tied_embeddings_have_no_head():
    tied = dataclasses.replace(CONFIG, tie_embeddings=True)
    params = params_of(tied)
    assert "head" not in params
    assert decoder.head(tied, params).shape == (CONFIG.width, CONFIG.vocab_size)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("kv_heads", 3, "kv_heads"), ("remat", "some", "none, dots, full"), ("dtype", "int8", "bfloat16")],
)
def test_impossible_shapes_are_refused_by_name(field, value, said):
    with pytest.raises(UserError, match=said):
        dataclasses.replace(CONFIG, **{field: value})


@pytest.mark.parametrize(
    ("T", "H", "G", "block"), [(37, 4, 2, 16), (32, 4, 4, 32), (33, 6, 1, 32), (5, 2, 1, 128)]
)
def test_blockwise_causal_attention_equals_the_square_one_with_its_gradients(T, H, G, block):
    rng = np.random.default_rng(T)
    q, k, v, w = (jnp.asarray(rng.normal(size=(3, T, heads, 8)), jnp.float32) for heads in (H, G, G, H))

    def square(q, k, v):
        k, v = (jnp.repeat(x, H // G, axis=2) for x in (k, v))
        scores = jnp.einsum("bthk,bshk->bhts", q, k) / np.sqrt(8)
        scores = jnp.where(jnp.tril(jnp.ones((T, T), bool)), scores, -jnp.inf)
        return jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(scores, -1), v)

    def blockwise(q, k, v):
        q = q.reshape(3, T, G, H // G, 8).transpose(0, 2, 3, 1, 4)
        y, _ = causal_attention(q, k.swapaxes(1, 2), v.swapaxes(1, 2), None, None, block)
        return y.transpose(0, 3, 1, 2, 4).reshape(3, T, H, 8)

    np.testing.assert_allclose(blockwise(q, k, v), square(q, k, v), atol=2e-6)
    ours, theirs = (
        jax.grad(lambda *a, f=f: jnp.sum(f(*a) * w), (0, 1, 2))(q, k, v) for f in (blockwise, square)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)
