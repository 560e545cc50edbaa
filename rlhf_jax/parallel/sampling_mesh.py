"""The mesh that a policy samples on, where that is another one than it is trained on: the same devices, cut anew."""

from __future__ import annotations

from jax.sharding import Mesh

from rlhf_jax.errors import UserError
from rlhf_jax.parallel.mesh import AXES


def sampling_mesh(mesh: Mesh, tensor: int) -> Mesh:
    """The devices of a mesh in the same order, every `tensor` of them one after the other sharing a copy of the policy.

    0 stands for the mesh's own number, which gives the mesh itself. Raises UserError naming rollout.tensor.
    """
    if tensor in (0, mesh.shape["tensor"]):
        return mesh
    if mesh.size % tensor:
        fits = [n for n in range(1, mesh.size + 1) if mesh.size % n == 0]
        raise UserError(
            f"rollout.tensor: {tensor} does not divide {mesh.size} devices; use one of {', '.join(map(str, fits))}, or "
            "0 for mesh.tensor"
        )
    # In the same order, so that one program may read arrays of one mesh and write arrays of the other.
    return Mesh(mesh.devices.reshape(1, -1, tensor), AXES, axis_types=mesh.axis_types)


def check_sampled_rows(mesh: Mesh, tensor: int, prompts: int, parts: int) -> None:
    """Raises UserError unless the groups of devices that share a copy divide the prompts of each part of a rollout."""
    cut = sampling_mesh(mesh, tensor)
    groups = cut.shape["data"] * cut.shape["fsdp"]
    if prompts % (groups * parts):
        raise UserError(
            f"rollout.tensor: {tensor} makes {groups} groups of devices, which do not divide the {prompts} prompts of "
            f"rollout.batch_size in rollout.microbatches={parts}; use a multiple of {groups * parts} prompts"
        )
