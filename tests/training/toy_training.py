"""A run small enough to be killed many times: an MLP on data made from the step number.

As a script: toy_training.py WORKDIR [name=value ...], settings as in `train`. Prints the last line "done".
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import rlhf_jax
from rlhf_jax.errors import UserError
from rlhf_jax.objectives.reduce import masked_mean
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.mesh import host_rows, make_mesh, to_global
from rlhf_jax.training.checkpoints import workdir
from rlhf_jax.training.checkpoints.checkpoint import MAY_CHANGE, Checkpoints
from rlhf_jax.training.loop import loop, state
from rlhf_jax.training.loop.metrics import make_writer
from rlhf_jax.training.loop.step import make_evaluator, make_train_step
from rlhf_jax.training.optimizers.optimizer import make_optimizer

ROWS, LENGTH, WIDTH = 16, 5, 8


def params(width=WIDTH):
    """Stacked matrices and vectors, as a decoder has them, and two leaves at the top."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape) * 0.4, jnp.float32)

    return {
        "layers": {"w": draw(2, width, width), "scale": 1 + draw(2, width)},
        "embed": draw(WIDTH, width),
        "score": draw(width),
    }


def loss_fn(p, batch):
    """Weighted squared error. Weights are ragged, and some rows have none."""
    x_BTD = batch["x"] @ p["embed"]
    for w, scale in zip(p["layers"]["w"], p["layers"]["scale"], strict=True):
        x_BTD = x_BTD + jnp.tanh(x_BTD @ w) * scale
    error_BT = x_BTD @ p["score"] - batch["y"]
    weight_BT = batch["weight"] * batch.get("gain", 1.0)
    return {"loss": masked_mean(error_BT**2, weight_BT), "bias": masked_mean(error_BT, weight_BT)}


def batch(i, rows=ROWS):
    """The batch of iteration i: lengths are ragged, every fourth row counts nothing."""
    rng = np.random.default_rng(100 + i)
    x = rng.normal(size=(rows, LENGTH, WIDTH)).astype(np.float32)
    lengths = rng.integers(1, LENGTH + 1, rows)
    weight = (np.arange(LENGTH) < lengths[:, None]).astype(np.float32)
    weight[1::4] = 0
    return {"x": x, "y": x.sum(-1), "weight": weight}


def optimizer(**changes):
    settings = {"learning_rate": 0.02, "total_steps": 40, "warmup_steps": 3, "weight_decay": 0.1}
    return make_optimizer(**(settings | changes))


def train(
    folder,
    *,
    steps=6,
    save_every=2,
    eval_every=0,
    log_every=1,
    best="",
    learning_rate=0.02,
    width=WIDTH,
    pause=0.0,
    pauses=(),
    poison=-1,
    microbatches=1,
    mesh="",
    hook=None,
):
    """One run, or the rest of one, in `folder`. Returns (final state, train step).

    pause: seconds per iteration; or pauses: of each, and it waits for the device.
    poison: the iteration with a NaN in its batch. hook(state, i): called first.
    mesh: sizes of data, fsdp and tensor, as "2,4,1"; without, everything is on one device.
    """
    tx = optimizer(learning_rate=learning_rate)
    train_step = make_train_step(loss_fn, tx, microbatches=microbatches)
    measure = make_evaluator(loss_fn)
    put = on_mesh(mesh) if mesh else lambda rows: rows
    here = place(params(width)) if mesh else params(width)
    first = state.create(here, tx, seed=1, extra={"kl_coef": 0.5})

    def iterate(now, i):
        if hook is not None:
            hook(now, i)
        time.sleep(pauses[i] if pauses else pause)
        data = batch(i)
        tokens = int(data["weight"].sum())
        if i == poison:
            data["x"][0, 0, 0] = np.nan
        data = put(data)
        noise = jax.random.normal(jax.random.fold_in(now.key, i), data["y"].shape)
        data["y"] = data["y"] + 0.1 * noise
        new, metrics = train_step(now, data)
        new = new.replace(extra={"kl_coef": new.extra["kl_coef"] * 1.01})
        if pauses:
            jax.block_until_ready((new, metrics))
        return (
            new,
            {**metrics, "kl_coef": new.extra["kl_coef"], "num_tokens": tokens},
            data,
        )

    def evaluate(now, step):
        return measure(now.params, [put(batch(1000)), put(batch(1001))])

    config = {"steps": steps, "optimizer": {"learning_rate": learning_rate}, "width": width}
    folder = workdir.prepare_workdir(folder, config)
    free = (*MAY_CHANGE, "steps")  # The rate of this optimizer does not know them.
    with Checkpoints(
        folder, config=config, may_change=free, best_metric=best, best_mode="min"
    ) as checkpoints:
        last = loop.run_loop(
            first,
            iterate,
            steps=steps,
            workdir=folder,
            checkpoints=checkpoints,
            writer=make_writer(folder),
            evaluate=evaluate if eval_every else None,
            eval_every=eval_every,
            eval_first=True,
            log_every=log_every,
            save_every=save_every,
        )
    workdir.lock.release(folder)
    return last, train_step


def on_mesh(sizes):
    """Makes the mesh; returns what puts this process's rows of a batch on it."""
    mesh = make_mesh(*map(int, sizes.split(",")))
    return lambda data: to_global({name: x[host_rows(ROWS, mesh)] for name, x in data.items()}, mesh)


def place(tree):
    """Parameters cut over "fsdp" along the last axis, but for the score head, which is whole everywhere."""
    mesh = jax.sharding.get_mesh()

    def put(path, x):
        axes = [None] * x.ndim if path[0].key == "score" else [None] * (x.ndim - 1) + ["fsdp"]
        host = np.asarray(x)
        where = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.make_array_from_callback(host.shape, where, lambda index: host[index])

    return jax.tree_util.tree_map_with_path(put, tree)


def rows(folder):
    """The rows of metrics.jsonl without what depends on the clock."""
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    clocked = ("perf/", "timing_s/")
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(clocked)} for line in lines]


def leaves(tree):
    """Every leaf as numpy, keys as their bits."""

    def plain(x):
        return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    return [np.asarray(plain(x)) for x in jax.tree.leaves(tree)]


def same(a, b):
    """Bit for bit."""
    a, b = leaves(a), leaves(b)
    return len(a) == len(b) and all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def start(*arguments, script=__file__, devices=1, **environment):
    """Starts a script of this folder in a process of its own."""
    root = str(Path(rlhf_jax.__file__).parents[1])
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "PYTHONPATH": root, "XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1", **environment}
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def main(folder, *settings):
    kinds = {name: type(value) for name, value in train.__kwdefaults__.items()}
    given = (setting.split("=") for setting in settings)
    startup.join_processes()
    try:
        train(folder, **{name: kinds[name](value) for name, value in given})
    except UserError as e:
        sys.exit(f"error: {e}")
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
