"""Causal attention by the accelerators' own kernels: cuDNN's on NVIDIA, splash attention (Pallas) on TPU.

Neither holds the square of scores in memory. Both take right-padded rows without a mask, as training has them, and
splash takes packed rows too; attention with a mask or a soft cap is computed in `attend`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from rlhf_jax.errors import UserError
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.parallel.mesh import ACTIVATION_AXES, mesh_device

# Rows are padded to a multiple of this: cuDNN's kernels have had bugs at other lengths.
_MULTIPLE = 128
_SPLASH_FROM = 1024  # below, XLA is as fast
_Kernel = Callable[..., Array]  # (q, k, v) or (q, k, v, segments)


def choose_kernel(
    wanted: str,
    *,
    T: int,
    K: int,
    dtype: str,
    platform: str,
    capability: tuple[int, int] = (0, 0),
    packed: bool = False,
    shared: bool = False,
) -> str:
    """Which of xla, cudnn and splash computes causal attention of T tokens with heads of size K.

    wanted: one of config.IMPLEMENTATIONS; auto takes the kernel of the platform where it fits, and else xla.
    packed: whether rows hold several documents, which cudnn cannot tell apart.
    shared: whether responses in a row see a prompt that they share, which neither kernel can.
    platform: "cpu", "gpu" (or "cuda") or "tpu". capability: of an NVIDIA GPU, as (9, 0); of a TPU v5p its
        generation, (5, 0). (0, 0): not known.
    Raises UserError when the kernel that is asked for does not fit, with what would.
    """
    # auto falls back to xla in silence; a kernel that is asked for by name must fit.
    if shared and wanted in ("auto", "xla"):
        return "xla"
    about = (K, dtype, platform, capability, packed)
    if wanted == "auto":
        if platform == "cpu":
            return "xla"
        if not _misfit("cudnn", *about):
            return "cudnn"
        return "splash" if T >= _SPLASH_FROM and not _misfit("splash", *about) else "xla"
    cannot = "knows no prompt that responses share, and data.share_prompts is on" if shared else ""
    if wanted != "xla" and (misfit := cannot or _misfit(wanted, *about)):
        raise UserError(f"model.attention: {wanted} {misfit}; use auto or xla")
    return wanted


def _misfit(kernel: str, K: int, dtype: str, platform: str, capability: tuple[int, int], packed: bool) -> str:
    """Why a kernel cannot be used; "" when it can."""
    if kernel == "splash":
        if platform != "tpu":
            return f"is for TPU, and this is {platform}"
        if (0, 0) < capability < (4, 0) and dtype != "float32":
            return f"takes float32 on TPU v{capability[0]}, and model.dtype is {dtype}"
        # Smaller heads compile, too, but leave most of the 128 lanes empty.
        fits = K % 8 == 0 and K >= 64
        return "" if fits else f"takes heads of a multiple of 8 from 64, and these have {K}"
    # These limits are jax's own checks in jax/_src/cudnn/fused_attention_stablehlo.py: they come late, while
    # the step is lowered, and their messages do not name a setting of ours.
    most = 256 if capability >= (9, 0) else 128
    if platform not in ("gpu", "cuda") or capability < (8, 0):
        where = f"{platform} {'.'.join(map(str, capability))}" if any(capability) else platform
        return f"is for NVIDIA GPUs from compute capability 8.0, and this is {where}"
    if dtype not in ("bfloat16", "float16"):
        return f"takes bfloat16, and model.dtype is {dtype}"
    if packed:
        return "does not tell the documents of a row apart, and data.packing is on"
    fits = K % 8 == 0 and most >= K
    return "" if fits else f"takes heads of a multiple of 8 up to {most}, and these have {K}"


def here() -> tuple[str, tuple[int, int]]:
    """(platform, compute capability) of the devices that the current mesh compiles for; of a TPU its generation, v5e
    and v5p (5, 0)."""
    device = mesh_device()
    if device.platform == "tpu":
        # Kinds are "TPU v3", "TPU v5 lite", "TPU7x".
        number = re.search(r"\d+", device.device_kind)
        return device.platform, (int(number[0]) if number else 0, 0)
    major, _, minor = str(getattr(device, "compute_capability", "0.0")).partition(".")
    known = major.isdigit() and minor.isdigit()
    return device.platform, (int(major), int(minor)) if known else (0, 0)


def kernel_packs(model: ModelConfig, T: int, length: int) -> bool:
    """Whether packed rows of `length` tokens have the attention kernel that rows of T tokens have without packing."""
    if model.positions == "learned" and length > model.max_positions:
        return False
    platform, capability = here()
    about = {"K": model.head_dim, "dtype": model.dtype, "platform": platform, "capability": capability}
    kernel = choose_kernel(model.attention, T=T, **about)
    # A fused kernel that cannot tell documents apart is worth more than what padding costs.
    return kernel in ("xla", choose_kernel("auto", T=length, packed=True, **about))


def cudnn(
    q_BTHK: Float[Array, "B T H K"], k_BTGK: Float[Array, "B T G K"], v_BTGK: Float[Array, "B T G K"]
) -> Float[Array, "B T H K"]:
    """cuDNN's flash attention; G divides H."""
    return _on_mesh(
        partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn"), q_BTHK, k_BTGK, v_BTGK
    )


def splash(
    q_BTHK: Float[Array, "B T H K"],
    k_BTGK: Float[Array, "B T G K"],
    v_BTGK: Float[Array, "B T G K"],
    segments_BT: Int[Array, "B T"] | None = None,
    *,
    interpret: bool = False,
) -> Float[Array, "B T H K"]:
    """Splash attention; with segments, a query looks at its own only.

    interpret: runs the kernel step by step on any platform, for tests.
    """

    def attention(q_BTHK: Array, k_BTGK: Array, v_BTGK: Array, *segments_BT: Array) -> Array:
        _, T, H, K = q_BTHK.shape
        kernel = _splash_kernel(T, H, interpret)
        # Splash wants [H, T, K] of a single row, and does not scale the scores.
        heads_first = (jnp.swapaxes(x, 1, 2) for x in (q_BTHK * K**-0.5, k_BTGK, v_BTGK))
        ids = (_segment_ids(x_BT) for x_BT in segments_BT)
        return jnp.swapaxes(jax.vmap(kernel)(*heads_first, *ids), 1, 2).astype(q_BTHK.dtype)

    return _on_mesh(attention, q_BTHK, k_BTGK, v_BTGK, *([] if segments_BT is None else [segments_BT]))


def _segment_ids(segments_BT: Array) -> Any:
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    return library.SegmentIds(q=segments_BT, kv=segments_BT)


# Cached, because the mask's block tables are made in Python, and every trace asks for the same ones.
@lru_cache
def _splash_kernel(T: int, H: int, interpret: bool) -> _Kernel:
    # The library puts the tables on devices. A thread of its own has neither this one's trace, whose tracers the cache
    # would leak, nor its mesh, whose devices may be on another machine.
    with ThreadPoolExecutor(1) as thread:
        kernel = thread.submit(_made_kernel, T, H, interpret).result()
    return jax.tree.map(np.asarray, kernel)


def _made_kernel(T: int, H: int, interpret: bool) -> _Kernel:
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    block = next(size for size in (512, 256, 128) if T % size == 0)
    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    mask = library.MultiHeadMask([library.CausalMask((T, T))] * H)
    return library.make_splash_mha(
        mask,
        block_sizes=library.BlockSizes(**dict.fromkeys(names, block)),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )


def _on_mesh(attention: _Kernel, q_BTHK: Array, k_BTGK: Array, v_BTGK: Array, *segments_BT: Array) -> Array:
    """Runs a kernel that is written for one device on each device of the mesh, over that device's rows and heads."""
    T = q_BTHK.shape[1]
    pad = ((0, 0), (0, -T % _MULTIPLE), (0, 0), (0, 0))  # later tokens: no real one sees them
    q_BTHK, k_BTGK, v_BTGK = (jnp.pad(x, pad) for x in (q_BTHK, k_BTGK, v_BTGK))
    segments_BT = tuple(jnp.pad(x, pad[:2]) for x in segments_BT)  # 0: of no document
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        rows, heads = (
            _axes(mesh, name, size) for name, size in (("batch", len(q_BTHK)), ("heads", q_BTHK.shape[2]))
        )
        if heads and _axes(mesh, "heads", k_BTGK.shape[2]) != heads:
            # Fewer key-value heads than devices: each query head gets its own.
            k_BTGK, v_BTGK = (jnp.repeat(x, q_BTHK.shape[2] // x.shape[2], axis=2) for x in (k_BTGK, v_BTGK))
        spec = PartitionSpec(rows, None, heads, None)
        specs = (spec, spec, spec, *(PartitionSpec(rows, None) for _ in segments_BT))
        # check_vma is off: pallas_call does not say over which axes its results vary.
        attention = jax.shard_map(attention, mesh=mesh, in_specs=specs, out_specs=spec, check_vma=False)
    return attention(q_BTHK, k_BTGK, v_BTGK, *segments_BT)[:, :T]


def _axes(mesh: jax.sharding.AbstractMesh, name: str, size: int) -> tuple[str, ...] | None:
    """The mesh axes a dimension is split over; None where they do not divide it."""
    axes = ACTIVATION_AXES[name]
    return axes if size % math.prod(mesh.shape[axis] for axis in axes) == 0 else None
