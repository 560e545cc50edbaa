"""The mesh: filling in -1, and errors that name the field."""

from dataclasses import dataclass
from types import SimpleNamespace

import jax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from rlhf_jax.errors import UserError
from rlhf_jax.parallel import mesh as mesh_lib


@pytest.mark.parametrize(
    ("sizes", "n_devices", "expected"),
    [
        ({"data": 1, "fsdp": -1, "tensor": 1}, 1, (1, 1, 1)),
        ({"data": 1, "fsdp": -1, "tensor": 1}, 8, (1, 8, 1)),
        ({"data": -1, "fsdp": 2, "tensor": 2}, 8, (2, 2, 2)),
        ({"data": 2, "fsdp": 1, "tensor": -1}, 8, (2, 1, 4)),
        ({"data": 2, "fsdp": 4, "tensor": 1}, 8, (2, 4, 1)),
        ({"data": 1, "fsdp": -1, "tensor": 8}, 8, (1, 1, 8)),
    ],
)
def test_sizes_are_filled_in(sizes, n_devices, expected):
    assert tuple(mesh_lib._resolve(sizes, n_devices).values()) == expected


@pytest.mark.parametrize(
    ("sizes", "n_devices", "field", "words"),
    [
        ({"data": 1, "fsdp": 3, "tensor": 1}, 8, "mesh.fsdp:", "needs 3 devices, 8 present"),
        ({"data": 1, "fsdp": 2, "tensor": 1}, 1, "mesh.fsdp:", "needs 2 devices, 1 present"),
        ({"data": 1, "fsdp": 1, "tensor": 1}, 8, "mesh.data:", "needs 1 device, 8 present"),
        ({"data": -1, "fsdp": -1, "tensor": 1}, 8, "mesh.fsdp:", "only one axis"),
        ({"data": 1, "fsdp": -1, "tensor": 3}, 8, "mesh.tensor:", "does not divide 8 devices"),
        ({"data": 1, "fsdp": -1, "tensor": 16}, 8, "mesh.tensor:", "does not divide 8 devices"),
    ],
)
def test_bad_sizes_name_the_field(sizes, n_devices, field, words):
    with pytest.raises(UserError) as error:
        mesh_lib._resolve(sizes, n_devices)
    message = str(error.value)
    assert message.startswith(field)
    assert words in message
    assert "\n" not in message


def test_make_mesh_sets_the_current_mesh():
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert mesh.axis_types == (AxisType.Auto,) * 3
    assert jax.sharding.get_mesh() == mesh


def test_the_device_of_a_mesh_that_is_not_here(monkeypatch):
    """A trace knows the kind of its mesh's devices alone; one of that kind was given to make_mesh."""
    there, here, found = jax.devices()[0], jax.local_devices()[0], []
    sizes = ((1, 1, 1), mesh_lib.AXES)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: [SimpleNamespace(device_kind="another")])
        patch.setitem(mesh_lib._KINDS, "TPU v9", there)
        absent = AbstractMesh(*sizes, abstract_device=AbstractDevice("TPU v9", 1, "tpu"))
        with jax.sharding.use_abstract_mesh(absent):
            jax.jit(lambda x: found.append(mesh_lib.mesh_device()) or x).trace(1.0)
    assert found == [there]
    assert mesh_lib.mesh_device(AbstractMesh(*sizes)) == here
    assert mesh_lib.mesh_device(mesh_lib.make_mesh(devices=jax.devices()[:1])) == here
    assert mesh_lib.mesh_device() == here


@dataclass(frozen=True)
class Chip:
    """As much of a TPU v6e chip as a mesh is arranged by."""

    id: int
    coords: tuple[int, int, int]
    platform: str = "tpu"
    device_kind: str = "TPU v6 lite"
    core_on_chip: int = 0
    process_index: int = 0
    slice_index: int = 0


def test_devices_of_two_slices_are_refused():
    chips = [Chip(i, (i % 4, i // 4, 0), slice_index=i // 8) for i in range(16)]
    with pytest.raises(UserError, match=r"^mesh: the 16 devices are of 2 slices; use those of one$"):
        mesh_lib.arranged((2, 8, 1), chips)


@pytest.mark.parametrize("sizes", [(32, 8, 1), (1, 256, 1), (2, 8, 16), (4, 64, 1)])
def test_axes_may_share_a_side_of_a_pod(sizes):
    pod = [Chip(16 * y + x, (x, y, 0)) for y in range(16) for x in range(16)]
    mesh = mesh_lib.arranged(sizes, pod)
    assert tuple(mesh.shape.values()) == sizes and mesh.axis_names == mesh_lib.AXES
    assert {chip.id for chip in mesh.devices.flat} == set(range(256))
    assert all(kind == AxisType.Auto for kind in mesh.axis_types)
    # Devices that share parameters are as near each other as a torus has room for.
    if sizes == (32, 8, 1):
        lines = [[chip.coords[:2] for chip in group] for group in mesh.devices[:, :, 0]]
        assert all(len({x for x, _ in line}) * len({y for _, y in line}) == 8 for line in lines)
