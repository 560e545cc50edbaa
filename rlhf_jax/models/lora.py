"""Low-rank adapters (Hu et al. 2021, LoRA): small trained matrices beside the frozen kernels of a model.

An adapter is a tree of its own, with leaves where the kernels are: beside layers/attention/q [L, D, H, K] stand
q_lora_a [L, D, r] and q_lora_b [L, r, H, K]. The two trees joined are the adapted model (`linear.adapted` computes
it); the base alone is the model with the adapter switched off. b starts at 0, so a fresh adapter adds exactly 0.
Files of adapters are read and written in `peft`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from rlhf_jax.errors import UserError
from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.huggingface.families import FAMILIES
from rlhf_jax.models.huggingface.family_tensors import Tensor
from rlhf_jax.parallel.mesh import TRAIN_RULES, shardings

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
ALL = "all"
_MARK = "_lora_"


class Lora(NamedTuple):
    """The settings of an adapter.

    Attributes:
      rank: r; 0 is no adapter.
      alpha: the adapter is multiplied with alpha / rank.
      targets: the kernels that have one, of TARGETS.
      base_dtype: in which the frozen model is kept while the adapter is trained, see `stored`.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    base_dtype: str = "float32"

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class Site(NamedTuple):
    """Kernels with one adapter: a single one, or those that the family keeps in one tensor and so share their a.

    Attributes:
      group: "attention" or "mlp".
      kernels: their names.
      inputs: shape of what goes in: (D,), or (H, K) for the attention's output.
      outputs: for each kernel, the shape of what comes out.
      tensor: that holds the kernels in a checkpoint.
    """

    group: str
    kernels: tuple[str, ...]
    inputs: tuple[int, ...]
    outputs: tuple[tuple[int, ...], ...]
    tensor: Tensor

    @property
    def a(self) -> str:
        """Name of the first factor; the second ones are called `b_of(kernel)`."""
        return f"{''.join(self.kernels)}{_MARK}a"


def b_of(kernel: str) -> str:
    """Name of the second factor of a kernel's adapter."""
    return f"{kernel}{_MARK}b"


def sites(config: ModelConfig) -> list[Site]:
    """The sites at which a model of this config can have adapters; the experts of a mixture have none."""
    kernels = _kernels(config)
    found = []
    for tensor in FAMILIES[config.family].layer:
        names = tuple(leaf[-1] for leaf in tensor.leaves)
        group = tensor.leaves[0][0]
        # Norms, biases and the router of a mixture are tensors of a layer too, and have no adapter.
        if group not in kernels or not set(names) <= set(kernels[group]):
            continue
        shapes = [kernels[group][name][0].shape[1:] for name in names]
        n = _inputs(names[0])
        outputs = tuple(tuple(shape[n:]) for shape in shapes)
        found.append(Site(group, names, tuple(shapes[0][:n]), outputs, tensor))
    return found


def chosen_sites(config: ModelConfig, targets: tuple[str, ...]) -> list[Site]:
    """The sites of some targets, or of all; UserError for one that the model does not have, or has only in part."""
    there = sites(config)
    names = [kernel for site in there for kernel in site.kernels]
    if targets == (ALL,):
        return there
    for target in targets:
        if target not in names:
            raise UserError(
                f"lora.targets: {target!r} of a {config.family} model; use all, or some of {','.join(names)}"
            )
    for site in there:
        # To PEFT a fused tensor is one module, which has an adapter as a whole or not at all.
        missing = [kernel for kernel in site.kernels if kernel not in targets]
        if missing and len(missing) < len(site.kernels):
            raise UserError(
                f"lora.targets: {','.join(targets)} without {','.join(missing)}; {config.family} keeps "
                f"{', '.join(site.kernels)} in one tensor, so name all of them"
            )
    return [site for site in there if site.kernels[0] in targets]


def planned_adapter(config: ModelConfig, lora: Lora, mesh: Mesh) -> decoder.Params:
    """An adapter as shapes with shardings: each factor is cut over the mesh as its kernel is."""
    boxed = _boxed(config, lora)
    where = shardings(nn.get_partition_spec(boxed), mesh, TRAIN_RULES, shapes=nn.unbox(boxed))
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), nn.unbox(boxed), where
    )


def init_adapter(config: ModelConfig, lora: Lora, mesh: Mesh, seed: int) -> decoder.Params:
    """A fresh adapter on the mesh: a ~ U(-1, 1) / sqrt(inputs) as in PEFT, b = 0."""
    like = planned_adapter(config, lora, mesh)

    def draw(path: tuple, like: jax.ShapeDtypeStruct, key: jax.Array) -> jax.Array:
        if path[-1].key.endswith("b"):
            return jnp.zeros(like.shape, jnp.float32)
        # A key by the leaf's name: its numbers do not depend on which other targets there are. crc32, since
        # Python's hash of a text differs from process to process.
        key = jax.random.fold_in(key, zlib.crc32(jax.tree_util.keystr(path).encode()))
        # PEFT's kaiming_uniform with a = sqrt(5) comes to this. The shape is [layer, inputs ..., r].
        bound = math.prod(like.shape[1:-1]) ** -0.5
        return jax.random.uniform(key, like.shape, jnp.float32, -bound, bound)

    def fresh(key: jax.Array) -> decoder.Params:
        return jax.tree_util.tree_map_with_path(lambda path, x: draw(path, x, key), like)

    # Drawn under jit with shardings: every device makes its part, and the numbers are the same on any mesh.
    where = jax.tree.map(lambda x: x.sharding, like)
    return jax.jit(fresh, out_shardings=where)(jax.random.key(seed))


def place_adapter(config: ModelConfig, lora: Lora, adapter: decoder.Params, mesh: Mesh) -> decoder.Params:
    """Places an adapter of host arrays on the mesh."""
    return jax.tree.map(
        lambda x, like: jax.make_array_from_callback(x.shape, like.sharding, lambda index: x[index]),
        adapter,
        planned_adapter(config, lora, mesh),
    )


def base_dtype(path: tuple[str, ...], dtype: str) -> str:
    """Dtype of one frozen parameter: `dtype`, but float32 for norms and score heads, which are computed in float32."""
    heads = ("score", "thresholds")
    return "float32" if any(name in heads or name.endswith("norm") for name in path) else dtype


def stored(params: decoder.Params, dtype: str) -> decoder.Params:
    """Casts frozen parameters, arrays or shapes, to the dtype in which they are kept while an adapter is trained.

    Where model.dtype is the same dtype, the kernels would be rounded at every use anyway, so training does not
    change. A later merge then adds the adapter to the rounded base.
    """

    def cast(path: tuple, x: Any) -> Any:
        wanted = jnp.dtype(base_dtype(tuple(key.key for key in path), dtype))
        if x.dtype == wanted:
            return x
        # A plan of the memory, made before weights are read, must round as the weights will.
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, wanted, sharding=x.sharding)
        return x.astype(wanted)

    return jax.tree_util.tree_map_with_path(cast, params)


def split_adapter(params: decoder.Params) -> tuple[decoder.Params, decoder.Params]:
    """Splits an adapted model into (base, adapter); without adapter leaves the second is empty."""
    adapter: decoder.Params = {}
    # Copies of the dicts that lose leaves: the caller's tree stays whole.
    layers = {name: dict(x) if isinstance(x, dict) else x for name, x in params["layers"].items()}
    for group, name in _adapter_leaves(params):
        adapter.setdefault("layers", {}).setdefault(group, {})[name] = layers[group].pop(name)
    return {**params, "layers": layers}, adapter


def merged(config: ModelConfig, params: decoder.Params) -> decoder.Params:
    """Merges the adapter into the kernels, kernel + scale * a b in float32; takes NumPy or jax arrays."""
    base, adapter = split_adapter(params)
    for group, leaves in adapter.get("layers", {}).items():
        for name, b in leaves.items():
            # By the second factors: each kernel has one, where fused kernels share the first.
            if not name.endswith("b"):
                continue
            kernel = name.removesuffix(b_of(""))
            a, _ = factors(params, ("layers", group, kernel))
            L, r = b.shape[:2]
            product = a.reshape(L, -1, r) @ b.reshape(L, r, -1) * np.float32(config.adapter_scale)
            old = base["layers"][group][kernel]
            base["layers"][group][kernel] = old + product.reshape(old.shape)
    return base


def factors(params: decoder.Params, path: tuple[str, ...]) -> tuple[Any, Any] | None:
    """(a, b) of all layers, NumPy or jax arrays, beside the parameter at `path`; None where it has no adapter."""
    if len(path) != 3 or path[0] != "layers":
        return None
    leaves, kernel = params["layers"][path[1]], path[2]
    if b_of(kernel) not in leaves:
        return None
    # Fused kernels have no first factor of their own; they share that of query, key and value.
    own = f"{kernel}{_MARK}a"
    return leaves[own if own in leaves else f"qkv{_MARK}a"], leaves[b_of(kernel)]


def settings_of(config: ModelConfig, adapter: decoder.Params) -> Lora:
    """Rank, alpha and targets of an adapter."""
    groups = adapter["layers"]
    there = [site for site in sites(config) if site.a in groups.get(site.group, {})]
    rank = groups[there[0].group][there[0].a].shape[-1]
    targets = tuple(kernel for site in there for kernel in site.kernels)
    return Lora(rank, config.adapter_scale * rank, targets)


def _adapter_leaves(params: decoder.Params) -> Iterator[tuple[str, str]]:
    for group, leaves in params["layers"].items():
        yield from ((group, name) for name in leaves if _MARK in name)


def _boxed(config: ModelConfig, lora: Lora) -> decoder.Params:
    """Shapes of the adapter, boxed with the logical axes of the kernels that it stands beside."""
    kernels, layers, L = _kernels(config), {}, config.layers

    def box(shape: tuple[int, ...], names: tuple[str | None, ...]) -> nn.LogicallyPartitioned:
        return nn.LogicallyPartitioned(jax.ShapeDtypeStruct((L, *shape), jnp.float32), ("layers", *names))

    for site in chosen_sites(config, lora.targets):
        group = layers.setdefault(site.group, {})
        n = len(site.inputs)
        for kernel, outputs in zip(site.kernels, site.outputs, strict=True):
            _, (_, *names) = kernels[site.group][kernel]
            group[site.a] = box((*site.inputs, lora.rank), (*names[:n], None))
            group[b_of(kernel)] = box((lora.rank, *outputs), (None, *names[n:]))
    return {"layers": layers}


def _kernels(
    config: ModelConfig,
) -> dict[str, dict[str, tuple[jax.ShapeDtypeStruct, tuple[str | None, ...]]]]:
    """group -> kernel -> (shape with all layers, logical axes)."""
    boxed = decoder.shapes(config)["layers"]
    # The experts' kernels have one axis more, [E, D, F], which a site cannot describe.
    groups = ("attention",) if config.experts else ("attention", "mlp")
    return {
        group: {name: (x.value, x.names) for name, x in boxed[group].items() if name in TARGETS}
        for group in groups
    }


def _inputs(kernel: str) -> int:
    """How many axes of a kernel are inputs."""
    return 2 if kernel == "o" else 1


def joined(frozen: PyTree, params: PyTree) -> PyTree:
    """The whole parameters of a model that is trained in part: two trees of nested dicts merged, `params` on top.

    Without anything frozen, params as they are.
    """
    if not (isinstance(frozen, dict) and isinstance(params, dict)) or not frozen:
        return params
    return frozen | {name: joined(frozen.get(name, {}), x) for name, x in params.items()}
