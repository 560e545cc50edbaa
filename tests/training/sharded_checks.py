"""Run by test_training_devices.py on 8 devices: where arrays live, and what moves between devices."""

import json
import shutil
import sys
from functools import partial

import jax
import numpy as np
import toy_training as toy
from jax.sharding import NamedSharding, PartitionSpec

from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.parallel.microbatches import split
from rlhf_jax.training.checkpoints.checkpoint import Checkpoints
from rlhf_jax.training.loop import state
from rlhf_jax.training.loop.step import make_train_step
from rlhf_jax.training.optimizers.optimizer import partitioned


def moments_live_where_their_parameters_live():
    place = {"policy": toy.place(toy.params()), "value": toy.place(toy.params())}
    tx = partitioned({"policy": toy.optimizer(), "value": toy.optimizer(weight_decay=0.0)})
    made = state.create(place, tx, seed=0, extra={"kl_coef": 0.1})
    wanted = {name: x.sharding.spec for name, x in made.params["policy"].items() if name != "layers"}
    moments = 0
    for path, x in jax.tree_util.tree_leaves_with_path(made.opt_state):
        name = jax.tree_util.keystr(path[-1:], simple=True)
        if x.ndim:
            moments += 1
            expected = wanted.get(name, made.params["policy"]["layers"].get(name, x).sharding.spec)
            assert x.sharding.spec == expected, (path, x.sharding)
        else:
            assert x.sharding.is_fully_replicated and len(x.sharding.device_set) == 8, path
    assert moments == 16  # two moments of four leaves of two trees
    assert made.opt_state is not None and made.extra["kl_coef"].sharding.is_fully_replicated
    step = make_train_step(lambda p, b: toy.loss_fn(p["policy"], b), tx, microbatches=2)
    before = state.shardings_of(made)
    for i in range(3):
        made, _ = step(made, put(toy.batch(i)))
    assert step.cache_size() == 1
    assert jax.tree.leaves(state.shardings_of(made)) == jax.tree.leaves(before)


def splitting_moves_no_row():
    data = put(toy.batch(0))
    cut = jax.jit(lambda batch: jax.tree.map(lambda x: x * 2, split(batch, 2)[0]))
    text = cut.lower(data).compile().as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert collective not in text, collective
    for part in cut(data):
        assert part.sharding.spec[:2] == (None, ("data", "fsdp")), part.sharding


def a_checkpoint_comes_back_on_other_meshes(folder):
    made = state.create(toy.place(toy.params()), toy.optimizer(), seed=0)
    with Checkpoints(folder, config={}) as checkpoints:
        checkpoints.save(1, made)
    turned = partial(NamedSharding, make_mesh(8, 1, 1))

    def like(x):
        axes = [None] * x.ndim
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=turned(PartitionSpec(*axes)))

    with Checkpoints(folder, config={}) as checkpoints:
        found = checkpoints.restore(jax.tree.map(like, made)).state
    assert toy.same(found, made)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(found))


def the_whole_loop(folder):
    """Compared with one device by the test."""
    settings = {"steps": 6, "save_every": 2, "eval_every": 3}
    for name, mesh, microbatches in (("fsdp", "2,4,1", 2), ("data", "8,1,1", 1)):
        _, step = toy.train(f"{folder}/{name}", mesh=mesh, microbatches=microbatches, **settings)
        assert step.cache_size() == 1
        shutil.copytree(f"{folder}/{name}", f"{folder}/{name} longer")
        more = settings | {"steps": 8}
        _, step = toy.train(f"{folder}/{name} longer", mesh=mesh, microbatches=microbatches, **more)
        assert step.cache_size() == 1  # arrays that come out of a checkpoint need no other program


if __name__ == "__main__":
    put = toy.on_mesh("2,4,1")
    assert len(jax.devices()) == 8
    moments_live_where_their_parameters_live()
    splitting_moves_no_row()
    a_checkpoint_comes_back_on_other_meshes(f"{sys.argv[1]}/turned")
    the_whole_loop(sys.argv[1])
    print(json.dumps({"ok": True, "devices": int(np.prod(jax.device_count()))}))
