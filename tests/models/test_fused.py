"""The kernels' choice and arguments, and splash attention itself, interpreted, against attention written out."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.models.attention import fused
from rlhf_jax.models.attention.attend import attend
from rlhf_jax.models.config import IMPLEMENTATIONS, ModelConfig

AMPERE, HOPPER = {"platform": "gpu", "capability": (8, 0)}, {"platform": "gpu", "capability": (9, 0)}
CPU, TPU = {"platform": "cpu"}, {"platform": "tpu"}
TPU_V3 = {"platform": "tpu", "capability": (3, 0)}


@pytest.mark.parametrize(
    ("where", "T", "K", "dtype", "kind"),
    [
        (CPU, 4096, 128, "bfloat16", "xla"),
        (AMPERE, 512, 128, "bfloat16", "cudnn"),
        (AMPERE, 512, 128, "float32", "xla"),
        (AMPERE, 512, 256, "bfloat16", "xla"),
        (HOPPER, 512, 256, "bfloat16", "cudnn"),
        (HOPPER, 512, 84, "bfloat16", "xla"),
        ({"platform": "gpu", "capability": (7, 5)}, 512, 64, "bfloat16", "xla"),
        (TPU, 1024, 128, "bfloat16", "splash"),
        (TPU, 1024, 128, "float32", "splash"),
        (TPU, 1016, 128, "bfloat16", "xla"),
        (TPU, 2048, 64, "bfloat16", "splash"),
        (TPU, 2048, 80, "bfloat16", "splash"),
        (TPU, 2048, 32, "bfloat16", "xla"),
        (TPU, 2048, 100, "bfloat16", "xla"),
        (TPU_V3, 2048, 128, "bfloat16", "xla"),
        (TPU_V3, 2048, 128, "float32", "splash"),
        ({"platform": "tpu", "capability": (6, 0)}, 2048, 64, "bfloat16", "splash"),
    ],
)
def test_auto(where, T, K, dtype, kind):
    assert fused.choose_kernel("auto", T=T, K=K, dtype=dtype, **where) == kind
    assert fused.choose_kernel("xla", T=T, K=K, dtype=dtype, **where) == "xla"


@pytest.mark.parametrize(
    ("wanted", "where", "K", "dtype", "words"),
    [
        ("cudnn", CPU, 64, "bfloat16", "and this is cpu"),
        ("cudnn", AMPERE, 64, "float32", "model.dtype is float32"),
        ("cudnn", AMPERE, 256, "bfloat16", "up to 128, and these have 256"),
        ("splash", HOPPER, 128, "bfloat16", "is for TPU, and this is gpu"),
        ("splash", TPU, 32, "bfloat16", "and these have 32"),
        ("splash", TPU_V3, 128, "bfloat16", "takes float32 on TPU v3, and model.dtype is bfloat16"),
    ],
)
def test_a_kernel_that_does_not_fit_says_why(wanted, where, K, dtype, words):
    with pytest.raises(UserError, match=f"model.attention: {wanted} ") as error:
        fused.choose_kernel(wanted, T=512, K=K, dtype=dtype, **where)
    assert words in str(error.value)


def test_packed_rows_are_for_splash():
    about = {"T": 1024, "K": 128, "dtype": "bfloat16", "packed": True}
    assert [fused.choose_kernel("auto", **about, **where) for where in (CPU, HOPPER, TPU)] == [
        "xla",
        "xla",
        "splash",
    ]
    with pytest.raises(UserError, match="cudnn does not tell the documents of a row apart"):
        fused.choose_kernel("cudnn", **about, **HOPPER)


def test_the_config_takes_these_names_only():
    assert IMPLEMENTATIONS == ("auto", "xla", "cudnn", "splash")
    config = ModelConfig(vocab_size=8, width=8, layers=1, heads=1, kv_heads=1, head_dim=8, ff=8)
    with pytest.raises(UserError, match=r"model\.attention: 'flash'; use one of auto, xla"):
        dataclasses.replace(config, attention="flash")


def draw(B, T, H, G, K, dtype):
    rng = np.random.default_rng(0)
    shapes = ((B, T, H, K), (B, T, G, K), (B, T, G, K), (B, T, H, K))
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def written_out(q_BTHK, k_BTGK, v_BTGK):
    """float64, head by head."""
    q, k, v = (np.asarray(x, np.float64) for x in (q_BTHK, k_BTGK, v_BTGK))
    B, T, H, K = q.shape
    out = np.zeros_like(q)
    for b in range(B):
        for h in range(H):
            g = h // (H // k.shape[2])
            scores = q[b, :, h] @ k[b, :, g].T / np.sqrt(K)
            scores[np.triu_indices(T, 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[b, :, h] = weights / weights.sum(-1, keepdims=True) @ v[b, :, g]
    return out


@pytest.mark.parametrize(
    ("T", "K", "dtype", "tolerance"),
    [
        (128, 128, "bfloat16", 2e-2),
        (200, 128, "float32", 2e-5),  # padded
        (200, 128, "bfloat16", 2e-2),
        (384, 64, "float32", 2e-5),  # three blocks of 128
        (1024, 80, "float32", 2e-5),  # two of 512
    ],
)
def test_splash_attention_and_its_gradient(T, K, dtype, tolerance):
    *qkv, dy = draw(2 if T < 300 else 1, T, 4, 2, K, dtype)

    def out_and_gradient(attention):
        return jax.jit(lambda *qkv: (lambda y, pull: (y, *pull(dy)))(*jax.vjp(attention, *qkv)))(*qkv)

    found = out_and_gradient(lambda *qkv: fused.splash(*qkv, interpret=True))
    np.testing.assert_allclose(np.float32(found[0]), written_out(*qkv), atol=tolerance, rtol=tolerance)
    for a, b in zip(found, out_and_gradient(lambda *qkv: attend(*qkv, None)), strict=True):
        assert a.dtype == b.dtype == dtype
        np.testing.assert_allclose(np.float32(a), np.float32(b), atol=4 * tolerance, rtol=tolerance)


@pytest.mark.parametrize(("T", "K", "scale"), [(200, 128, 1), (384, 80, 2), (1024, 64, 5)])
def test_splash_attention_on_packed_rows(T, K, scale):
    """Documents of many lengths, some of which span blocks, and padding; output and gradient of real tokens.

    The first is one block, the others are three and two.
    """
    *qkv, dy = draw(2, T, 2, 1, K, "float32")
    ends = np.array([[1, 40 * scale, 150 * scale, 190 * scale], [100, 101, 160 * scale, T]])
    segments_BT = jnp.asarray(
        [[next((i + 1 for i, e in enumerate(row) if t < e), 0) for t in range(T)] for row in ends], jnp.int32
    )
    dy = dy * (segments_BT > 0)[..., None, None]

    def out_and_gradient(attention):
        def real(*qkv):
            return attention(*qkv) * (segments_BT > 0)[..., None, None]

        return jax.jit(lambda *qkv: (lambda y, pull: (y, *pull(dy)))(*jax.vjp(real, *qkv)))(*qkv)

    found = out_and_gradient(lambda *qkv: fused.splash(*qkv, segments_BT, interpret=True))
    wanted = out_and_gradient(lambda *qkv: attend(*qkv, None, segments_BT=segments_BT))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)
    middle = slice(40 * scale, 150 * scale)
    alone = written_out(*(x[:1, middle] for x in qkv))
    np.testing.assert_allclose(found[0][:1, middle], alone, atol=2e-5, rtol=2e-5)


def test_the_generation_of_a_tpu_is_in_its_name(monkeypatch):
    for kind, generation in (("TPU v3", 3), ("TPU v5 lite", 5), ("TPU7x", 7)):
        device = types.SimpleNamespace(platform="tpu", device_kind=kind)
        monkeypatch.setattr(fused, "mesh_device", lambda device=device: device)
        assert fused.here() == ("tpu", (generation, 0))


def test_what_cudnn_is_asked_for(monkeypatch):
    """Rows padded to a multiple of 128, causal, no mask; the answer without the padding."""
    asked = {}

    def stand_in(q, k, v, **options):
        asked.update(options, shapes=(q.shape, k.shape, v.shape))
        return original(q, k, v, **options | {"implementation": "xla"})

    original = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    monkeypatch.setattr(fused, "here", lambda: ("gpu", (9, 0)))
    *qkv, _ = draw(2, 72, 4, 2, 16, "bfloat16")
    found = attend(*qkv, None, 0.0, "auto")
    assert asked == {
        "is_causal": True,
        "implementation": "cudnn",
        "shapes": ((2, 128, 4, 16), (2, 128, 2, 16), (2, 128, 2, 16)),
    }
    np.testing.assert_allclose(np.float32(found), written_out(*qkv), atol=2e-2, rtol=2e-2)
    asked.clear()
    mask_BTT = jnp.broadcast_to(jnp.tril(jnp.ones((72, 72), bool)), (2, 72, 72))
    attend(*qkv, mask_BTT, 0.0, "auto")
    attend(*qkv, None, 30.0, "auto")
    attend(*qkv, None, 0.0, "auto", jnp.ones((2, 72), jnp.int32))
    assert not asked  # masks, soft caps and packed rows are XLA's


def test_tables_of_splash_lie_on_no_device():
    """Made in a trace, and kept for all that follow: they are neither its tracers nor arrays of its mesh."""
    fused._splash_kernel.cache_clear()
    jax.jit(lambda x: fused._splash_kernel(256, 2, True) and x).trace(1.0)
    leaves = jax.tree.leaves(fused._splash_kernel(256, 2, True))
    assert leaves and {type(x) for x in leaves} == {np.ndarray}


def test_the_kernel_is_part_of_a_training_step_on_a_gpu_of_another_machine(monkeypatch):
    """Lowered for CUDA, where none is: forward and backward pass are cuDNN's, with no square of scores."""
    from jax._src.cudnn import fused_attention_stablehlo as library

    monkeypatch.setattr(library, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(library, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(library, "is_cuda_compute_capability_equal", lambda _: False)
    *qkv, _ = draw(2, 200, 4, 2, 64, "bfloat16")
    gradient = jax.jit(jax.grad(lambda *qkv: jnp.sum(fused.cudnn(*qkv).astype(jnp.float32)), (0, 1, 2)))
    text = gradient.trace(*qkv).lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaSoftmax" in text and "__cudnn$fmhaSoftmaxBackward" in text
    assert "2x4x256x256" not in text
