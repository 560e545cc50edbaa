"""Run by test_sampling_mesh.py on eight devices: FARM OUT. What is sampled on other meshes than the training's."""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tiny_farm
from wide import WIDE

from rlhf_jax.errors import UserError
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.placement import init_sharded, rollout_copier
from rlhf_jax.parallel.mesh import BATCH_AXES, gather, make_mesh, to_global
from rlhf_jax.parallel.sampling_mesh import sampling_mesh
from rlhf_jax.programs import program
from rlhf_jax.rollout.rollout_shapes import RolloutShapes
from rlhf_jax.sampling.choose import Sampling
from rlhf_jax.sampling.decode import generate
from rlhf_jax.sampling.decode_generator import DecodeGenerator
from rlhf_jax.training.loop.program_costs import bytes_per_device

CONFIG = ModelConfig(vocab_size=64, width=32, layers=2, heads=8, kv_heads=8, head_dim=8, ff=64)
B, P, R = 16, 5, 7


def sampled(sizes, tensor):
    """What is sampled, and the bytes of a device's part of the copy."""
    mesh = make_mesh(*sizes)
    how = {"max_new_tokens": R, "sampling": Sampling(1.0), "end_ids": (1,), "pad_id": 0, "tensor": tensor}
    engine = DecodeGenerator(CONFIG, mesh, **how)
    rows = {"tokens": np.full((B, P), 4, np.int32), "lengths": np.arange(B, dtype=np.int32) % P + 1}
    given = to_global(rows | {"rows": np.arange(B, dtype=np.int32)}, mesh)
    engine.load(init_sharded(CONFIG, mesh, 0))
    found = engine.generate(*(given[name] for name in rows), given["rows"], jax.random.key(3), 2)
    assert all(x.sharding.spec == jax.P(BATCH_AXES) and x.sharding.mesh == mesh for x in found if x.ndim)
    return gather(found), bytes_per_device(engine._params)


def check_plan():
    """The program of the plan is the run's."""
    mesh = make_mesh(1, 8, 1)
    shapes, cut = RolloutShapes(mesh, B, P, R, 1.0, 0, tensor=4), sampling_mesh(mesh, 4)
    assert dict(shapes.sampling.shape) == {"data": 1, "fsdp": 2, "tensor": 4}
    copy = rollout_copier(CONFIG, cut, "float32", mesh)(init_sharded(CONFIG, mesh, 0))
    rows = to_global({x: np.zeros((B, P)[:n], np.int32) for x, n in (("a", 2), ("b", 1), ("c", 1))}, cut)
    key = jax.device_put(jax.random.key(0), jax.NamedSharding(cut, jax.P()))
    with jax.set_mesh(cut):
        ends = jnp.array([1], jnp.int32)
        given = (CONFIG, copy, *rows.values(), key, Sampling(1.0), ends, 0)
        wanted = generate.lower(*given, max_new_tokens=R)
    assert shapes.trace_sampling(CONFIG, "float32").lower().as_text() == wanted.as_text()


def run(farm, folder, **changes):
    """PPO on a mesh of four by two."""
    changes |= {"mesh.data": 2, "mesh.fsdp": 4, "minibatch_size": 8, "eval_every": 0, "best_metric": ""}
    program("ppo").run(tiny_farm.settings("ppo", farm, steps=1, **changes), str(folder))


if __name__ == "__main__":
    assert jax.device_count() == 8
    wanted, whole = sampled((1, 8, 1), 0)
    assert 0 < wanted.ended_B.sum() < 2 * B, wanted.lengths_B
    for sizes, tensor in (((1, 8, 1), 2), ((1, 8, 1), 8), ((2, 2, 2), 1)):
        found, part = sampled(sizes, tensor)
        for name in ("tokens_BR", "mask_BR", "lengths_B", "ended_B"):
            assert np.array_equal(getattr(found, name), getattr(wanted, name)), (sizes, tensor, name)
        assert np.allclose(found.logprobs_BR, wanted.logprobs_BR, atol=1e-5)
        # Norms are whole on all of them.
        assert whole / tensor <= part < 1.5 * whole / tensor, (sizes, tensor, part, whole)
        print(f"{sizes} {tensor} agrees")
    check_plan()
    try:
        narrow = dataclasses.replace(CONFIG, ff=60)
        RolloutShapes(make_mesh(1, 8, 1), B, P, R, 1.0, 0, tensor=8).trace_sampling(narrow, "float32")
    except UserError as error:
        print(error)
    print("planned as run")
    if WIDE:
        farm, out = map(Path, sys.argv[1:])
        run(farm, out / "as it is")
        run(farm, out / "cut", **{"rollout.tensor": 2, "rollout.offload": "all"})
