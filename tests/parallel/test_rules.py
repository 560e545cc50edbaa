"""Logical axis names -> shardings, on an abstract mesh of 8 devices (nothing is placed)."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from rlhf_jax.errors import UserError
from rlhf_jax.parallel.mesh import ROLLOUT_RULES, TRAIN_RULES, partition_spec, shardings

MESH = AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
WIDE = AbstractMesh((1, 1, 4), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, np.float32)


def specs_of(tree):
    return jax.tree.map(lambda sharding: sharding.spec, tree)


def test_every_axis_a_model_uses_has_a_rule():
    names = ("batch", "length", "embed", "heads", "kv_heads", "head_dim", "mlp", "vocab", "layers")
    assert set(names) == set(TRAIN_RULES) == set(ROLLOUT_RULES)
    assert partition_spec(("batch", "length"), TRAIN_RULES) == P(("data", "fsdp"), None)


def test_training_splits_over_fsdp_and_tensor_rollout_over_tensor():
    specs = {"mlp": {"kernel": ("layers", "embed", "mlp")}, "norm": {"scale": ("embed",)}, "step": ()}
    shapes = {"mlp": {"kernel": shape(3, 8, 16)}, "norm": {"scale": shape(8)}, "step": shape()}
    train = specs_of(shardings(specs, MESH, TRAIN_RULES, shapes))
    assert train == {"mlp": {"kernel": P(None, "fsdp", "tensor")}, "norm": {"scale": P("fsdp")}, "step": P()}
    rollout = specs_of(shardings(specs, MESH, ROLLOUT_RULES, shapes))
    assert rollout == {"mlp": {"kernel": P(None, None, "tensor")}, "norm": {"scale": P(None)}, "step": P()}
    assert specs_of(shardings(specs, MESH, TRAIN_RULES)) == train


def test_few_kv_heads_are_copied_and_enough_are_split():
    specs = {"k": ("embed", "kv_heads", "head_dim")}
    assert specs_of(shardings(specs, WIDE, TRAIN_RULES, {"k": shape(8, 2, 4)}))["k"] == P("fsdp", None, None)
    split = specs_of(shardings(specs, WIDE, TRAIN_RULES, {"k": shape(8, 8, 4)}))["k"]
    assert split == P("fsdp", "tensor", None)


def test_an_odd_vocabulary_is_copied_and_an_even_one_split():
    specs = {"head": ("embed", "vocab")}
    assert specs_of(shardings(specs, WIDE, TRAIN_RULES, {"head": shape(8, 510)}))["head"] == P("fsdp", None)
    assert specs_of(shardings(specs, WIDE, TRAIN_RULES, {"head": shape(8, 512)}))["head"] == P(
        "fsdp", "tensor"
    )


@pytest.mark.parametrize(
    ("names", "sizes", "words"),
    [
        (("embed", "kv_heads"), (8, 6), "kv_heads=6"),  # more heads than devices: no silent copy
        (("embed", "heads"), (8, 2), "heads=2"),
        (("mlp", "embed"), (510, 8), "mlp=510"),
    ],
)
def test_uneven_dimension_names_field_dimension_and_parameter(names, sizes, words):
    with pytest.raises(UserError) as error:
        shardings({"block": {"w": names}}, WIDE, TRAIN_RULES, {"block": {"w": shape(*sizes)}})
    message = str(error.value)
    assert message.startswith("mesh.tensor: 4 devices")
    assert words in message
    assert "block/w" in message


def test_optimizer_states_are_trees_not_leaves():
    """An optimizer state holds tuples and named tuples; only tuples of names are specs."""
    specs = {"w": P("embed", "mlp"), "b": P("mlp")}
    state = optax.adamw(1e-3).init({"w": np.zeros((8, 16)), "b": np.zeros(16)})
    state_specs = optax.tree_utils.tree_map_params(
        optax.adamw(1e-3), lambda _, spec: spec, state, specs, transform_non_params=lambda _: P()
    )
    result = specs_of(shardings(state_specs, MESH, TRAIN_RULES, state))
    assert result[0].mu == {"w": P("fsdp", "tensor"), "b": P("tensor")}
    assert result[0].count == P()
    assert jax.tree.structure(result) == jax.tree.structure(state)
