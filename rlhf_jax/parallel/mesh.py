"""The one device mesh: axes ("data", "fsdp", "tensor"), made from three numbers of the config."""

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from rlhf_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # the rows of a batch are split over both


def make_mesh(
    data: int = 1, fsdp: int = -1, tensor: int = 1, *, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Builds the mesh over all devices (or over `devices`) and makes it current with `jax.set_mesh`.

    data:   copies of the model that see different rows.
    fsdp:   devices that share the parameters and also split the rows.
    tensor: devices that split heads, feed-forward width and vocabulary.
    At most one of the three may be -1: it then takes the devices that remain.

    Axis types are Auto, so models say where arrays live by sharding constraints, not in their types.
    Raises UserError naming `mesh.<axis>` when the numbers do not fit the device count.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = _resolve({"data": data, "fsdp": fsdp, "tensor": tensor}, len(devices))
    mesh = jax.make_mesh(
        tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )
    jax.set_mesh(mesh)
    return mesh


def _resolve(sizes: dict[str, int], n_devices: int) -> dict[str, int]:
    """Fills in the one -1 and checks that the product is the device count."""
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise UserError(
            f"mesh.{free[1]}: -1, and mesh.{free[0]} is -1 too; only one axis can take the remaining devices"
        )
    product = 1
    for size in sizes.values():
        product *= max(size, 1)
    shown = " x ".join(f"{name}={size}" for name, size in sizes.items() if size != -1)
    widest = max(sizes, key=lambda name: sizes[name])
    if free:
        if n_devices % product:
            raise UserError(
                f"mesh.{widest}: {shown} does not divide {_devices(n_devices)}; "
                f"choose sizes whose product divides {n_devices}"
            )
        return sizes | {free[0]: n_devices // product}
    if product != n_devices:
        raise UserError(
            f"mesh.{widest}: {shown} needs {_devices(product)}, {n_devices} present; "
            f"set mesh.{widest}=-1 to take the devices that remain"
        )
    return sizes


def _devices(n: int) -> str:
    return f"{n} device" + ("" if n == 1 else "s")
