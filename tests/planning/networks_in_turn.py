"""Prints the memory beside its arguments, in MiB, that a step of 1, 2, 3 networks in four micro-batches takes on a TPU.

python networks_in_turn.py turns|together
"""

import sys

from rlhf_jax.planning import slices

slices.prepare_environment()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

from rlhf_jax.objectives.reduce import Mean  # noqa: E402
from rlhf_jax.training.loop.program_costs import needs  # noqa: E402
from rlhf_jax.training.loop.state import planned_state  # noqa: E402
from rlhf_jax.training.loop.step import make_train_step  # noqa: E402
from rlhf_jax.training.optimizers.optimizer import make_optimizer, partitioned  # noqa: E402

L, D, B = 4, 4096, 4096


def loss_of(name):
    def loss_fn(params, batch):
        def layer(x_BD, w_DD):
            return jnp.tanh(x_BD @ w_DD.astype(jnp.bfloat16)), None

        x_BD, _ = jax.lax.scan(jax.checkpoint(layer), batch.astype(jnp.bfloat16), params[name]["w"])
        return {"loss": Mean((x_BD.astype(jnp.float32) ** 2).sum(), jnp.float32(B))}

    return loss_fn


def main(how):
    (found,) = slices.slices_of("v5e:2x2")
    mesh = Mesh(np.array(slices.devices_of(found)[:1]), ("x",))
    jax.set_mesh(mesh)
    here = NamedSharding(mesh, PartitionSpec())
    for count in (1, 2, 3):
        names = [f"net {i}" for i in range(count)]
        losses = {name: loss_of(name) for name in names}

        def together(params, batch, losses=losses):
            return {"loss": Mean(sum(f(params, batch)["loss"].sum for f in losses.values()), jnp.float32(B))}

        optimizer = partitioned({name: make_optimizer(learning_rate=1e-3, total_steps=10) for name in names})
        params = {name: {"w": jax.ShapeDtypeStruct((L, D, D), jnp.float32, sharding=here)} for name in names}
        step = make_train_step(losses if how == "turns" else together, optimizer, microbatches=4)
        rows = jax.ShapeDtypeStruct((B, D), jnp.float32, sharding=here)
        program = (
            step.trace(planned_state(params, optimizer), rows).lower(lowering_platforms=("tpu",)).compile()
        )
        found = needs(program)
        print(round((found.total - found.arguments) / 2**20))


if __name__ == "__main__":
    main(*sys.argv[1:])
