"""Which mesh axis each logical axis of a parameter or a batch is split over.

Models name the axes of their arrays ("embed", "heads", ...); this table alone says where they live.
"""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from rlhf_jax.errors import UserError

Rules = Mapping[str, str | tuple[str, ...] | None]

# Parameters and optimizer state are split over fsdp (ZeRO-3) and tensor; rows over data and fsdp.
TRAIN_RULES: Rules = {
    "batch": ("data", "fsdp"),
    "length": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "vocab": "tensor",
    "layers": None,
}

# Decoding reads every weight once per token: gathering them over fsdp each time would cost more than the
# memory saved, so the rollout copy is split over tensor only.
ROLLOUT_RULES: Rules = {**TRAIN_RULES, "embed": None}

# Grouped-query attention may have fewer key-value heads than tensor devices: those are then copied.
_MAY_REPLICATE = ("kv_heads",)
# Vocabularies are often odd (50257, or 32000 and a pad token): a table that cannot be split is copied.
_MAY_BE_ODD = ("vocab",)


def partition_spec(names: tuple[str | None, ...], rules: Rules) -> PartitionSpec:
    """Logical axis names of one array -> its PartitionSpec. Raises KeyError for a name the rules lack."""
    return PartitionSpec(*(None if name is None else rules[name] for name in names))


def shardings(logical_specs: Any, mesh: Mesh | AbstractMesh, rules: Rules, shapes: Any = None) -> Any:
    """A tree of logical axis names -> the same tree of NamedShardings.

    logical_specs: each leaf a tuple of logical names (None: not split) or a PartitionSpec of them, as
        `flax.linen.get_partition_spec` returns for boxed parameters; scalars have an empty one.
    mesh: an AbstractMesh plans for devices that are not here.
    shapes: optional tree of the same structure whose leaves have `.shape` (arrays or ShapeDtypeStructs).
        With it, every split dimension is checked: a mesh axis that does not divide it raises UserError,
        except that fewer kv_heads than devices, and a vocabulary that does not divide, are copied to all of them.
    """
    if shapes is None:
        return jax.tree.map(
            lambda names: NamedSharding(mesh, partition_spec(tuple(names), rules)),
            logical_specs,
            is_leaf=_is_spec,
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, names, leaf: _checked(path, tuple(names), leaf.shape, mesh, rules),
        logical_specs,
        shapes,
        is_leaf=_is_spec,
    )


def _is_spec(x: Any) -> bool:
    # Optimizer states are tuples and named tuples of trees; only a plain tuple of names is a leaf.
    if isinstance(x, PartitionSpec):
        return True
    return type(x) is tuple and all(name is None or isinstance(name, str) for name in x)


def _checked(
    path: tuple,
    names: tuple[str | None, ...],
    shape: tuple[int, ...],
    mesh: Mesh | AbstractMesh,
    rules: Rules,
) -> NamedSharding:
    where = jax.tree_util.keystr(path, simple=True, separator="/")
    if len(names) > len(shape):
        raise ValueError(f"{where}: {len(names)} axis names {names} for shape {shape}")
    spec = []
    for name, size in zip(names, shape, strict=False):
        axes = None if name is None else rules[name]
        ways = _ways(axes, mesh)
        if ways == 1 or size % ways == 0:
            spec.append(axes)
        elif name in _MAY_BE_ODD or (name in _MAY_REPLICATE and size < ways):
            spec.append(None)
        else:
            field = axes if isinstance(axes, str) else "/".join(axes)
            raise UserError(
                f"mesh.{field}: {ways} devices cannot split {name}={size} of {where} evenly; "
                f"use a mesh.{field} that divides {size}, or another {name} size"
            )
    return NamedSharding(mesh, PartitionSpec(*spec))


def _ways(axes: str | tuple[str, ...] | None, mesh: Mesh | AbstractMesh) -> int:
    if axes is None:
        return 1
    ways = 1
    for axis in (axes,) if isinstance(axes, str) else axes:
        ways *= mesh.shape[axis]
    return ways
