"""Host rows -> global arrays and back: one device, eight virtual devices, two processes."""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from quick import QUICK

from rlhf_jax.errors import UserError
from rlhf_jax.parallel import mesh as meshes
from rlhf_jax.parallel.mesh import make_mesh

REPOSITORY = Path(__file__).resolve().parents[2]


def start_python(code, devices, **variables):
    """Runs code in a fresh Python with so many virtual CPU devices."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RLHF_JAX_", "SLURM_"))}
    environment |= {
        "XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(REPOSITORY),
        **variables,
    }
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, timeout=90):
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        pytest.fail(f"did not end within {timeout} s:\n{output}")
    return process.returncode, output


@pytest.fixture
def mesh():
    return make_mesh(devices=jax.devices()[:1])


def test_round_trip_on_one_device(mesh):
    batch = {"tokens": np.arange(12, dtype=np.int32).reshape(4, 3), "weight": np.float32(2)}
    put = meshes.to_global(batch)
    assert put["tokens"].shape == (4, 3)
    assert put["tokens"].sharding.spec == jax.sharding.PartitionSpec(("data", "fsdp"))
    back = meshes.gather(put)
    assert isinstance(back["tokens"], np.ndarray)
    np.testing.assert_array_equal(back["tokens"], batch["tokens"])
    assert back["tokens"].dtype == np.int32
    assert back["weight"] == 2
    assert meshes.host_rows(4) == slice(0, 4)


def test_replicate_takes_numpy_arrays_and_keys(mesh):
    key = jax.random.key(3)
    tree = meshes.replicate({"a": np.arange(3.0), "b": jax.numpy.ones(2), "key": key})
    np.testing.assert_array_equal(meshes.gather(tree["a"]), [0, 1, 2])
    assert tree["key"].dtype == key.dtype
    np.testing.assert_array_equal(jax.random.key_data(tree["key"]), jax.random.key_data(key))


def test_gather_leaves_host_values_alone(mesh):
    tree = {"n": np.arange(3), "x": 1.5}
    back = meshes.gather(tree)
    np.testing.assert_array_equal(back["n"], [0, 1, 2])
    assert back["x"] == 1.5


EIGHT = """
    import jax, numpy as np
    from rlhf_jax.errors import UserError
    from rlhf_jax.parallel import mesh as arrays
    from rlhf_jax.parallel.mesh import make_mesh

    full = np.arange(48, dtype=np.float32).reshape(16, 3)
    for sizes in [(1, 8, 1), (8, 1, 1), (2, 2, 2), (1, 1, 8)]:
        mesh = make_mesh(*sizes)
        x = arrays.to_global(full[arrays.host_rows(16)])
        split = {shard.data.shape[0] for shard in x.addressable_shards}
        assert split == {16 // (sizes[0] * sizes[1])}, (sizes, split)
        doubled = jax.jit(lambda x: 2 * x)(x)
        np.testing.assert_array_equal(arrays.gather(doubled), 2 * full)
        assert arrays.replicate(full).is_fully_replicated
    make_mesh(2, 4, 1)
    try:
        arrays.host_rows(12)
        raise SystemExit("12 rows on 8 devices were accepted")
    except UserError as e:
        message = str(e)
        assert message.startswith("batch_size: 12 rows") and "use a multiple of 8" in message, e
    print("fine")
"""


def test_eight_devices():
    code, output = finish(start_python(EIGHT, devices=8))
    assert code == 0, output
    assert output.splitlines()[-1] == "fine"


TWO = """
    import sys, time
    import jax, numpy as np
    from rlhf_jax.errors import UserError
    from rlhf_jax.parallel import mesh as arrays, startup
    from rlhf_jax.parallel.mesh import make_mesh

    processes = startup.join_processes(timeout_s=60)
    me = processes.index
    assert processes[1:] == (2, 2, 4) and startup.is_main() == (me == 0)
    assert startup.join_processes() == processes  # a second call does nothing more

    full = np.arange(24, dtype=np.float32).reshape(8, 3)

    def round_trip(mesh, expected_rows):
        rows = arrays.host_rows(8)
        assert np.arange(8)[rows].tolist() == expected_rows, (me, rows)
        x = arrays.to_global({"x": full[rows], "scalar": np.float32(7)})
        assert x["x"].shape == (8, 3)
        back = arrays.gather(jax.tree.map(lambda a: a + 1, x))
        np.testing.assert_array_equal(back["x"], full + 1)
        assert back["scalar"] == 8

    halves = [[0, 1, 2, 3], [4, 5, 6, 7]]
    round_trip(make_mesh(2, 2, 1), halves[me])
    round_trip(make_mesh(1, 2, 2), halves[me])
    round_trip(make_mesh(1, 1, 4), list(range(8)))  # the tensor axis joins both: each needs all rows
    d = jax.devices()
    crossed = make_mesh(4, 1, 1, devices=[d[0], d[2], d[1], d[3]])
    round_trip(crossed, [[0, 1, 4, 5], [2, 3, 6, 7]][me])
    make_mesh()

    tree = arrays.replicate({"key": jax.random.key(5), "x": full})
    assert tree["x"].is_fully_replicated and tree["key"].is_fully_replicated
    np.testing.assert_array_equal(arrays.gather(tree["x"]), full)
    again = arrays.replicate(arrays.to_global(full[arrays.host_rows(8)]))
    np.testing.assert_array_equal(arrays.gather(again), full)

    startup.barrier("met", 30)
    startup.barrier("met", 30)  # the same name again is another barrier
    startup.agree("config", {"lr": 0.1, "steps": 3}, 30)
    startup.agree("config", {"lr": 1, "steps": 3} if me else {"steps": 3, "lr": 1}, 30)

    def error_of(call, *args):
        try:
            call(*args)
        except UserError as e:
            assert "\\n" not in str(e)
            return str(e)
        raise SystemExit(f"{call.__name__}{args} was accepted")

    message = error_of(startup.agree, "workdir", f"/runs/{me}", 30)
    assert message.startswith('workdir: process 0 has "/runs/0", process 1 has "/runs/1"'), message
    began = time.time()
    if me == 0:
        assert "barrier 'alone': not all 2 processes" in error_of(startup.barrier, "alone", 1.0)
    else:
        assert error_of(startup.agree, "version", 1, 1.0).startswith("version: process 0 said nothing")
    assert time.time() - began < 10

    print("fine", flush=True)
    startup.barrier("both said so", 60)  # who fails before takes the other one along
    if me == 0:  # the other one never comes there; this one hears of its end, and ends
        startup.barrier("gone", 60)
    startup.leave(6, "a reason")
"""


def test_two_processes():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    common = {"RLHF_JAX_COORDINATOR": f"127.0.0.1:{port}", "RLHF_JAX_NUM_PROCESSES": "2"}
    running = [start_python(TWO, devices=2, **common, RLHF_JAX_PROCESS_ID=str(i)) for i in range(2)]
    try:
        results = [finish(process) for process in reversed(running)]
    finally:
        for process in running:
            process.kill()
    (left, first), (told, second) = results
    # Not their order: what C++ libraries print comes in between.
    assert left == 6 and "fine" in first.splitlines(), first
    assert told == 3 and {"fine", "error: process 1 failed: a reason"} <= {*second.splitlines()}, second


@pytest.mark.parametrize("rows", [0, -1])
def test_no_rows_is_an_error(mesh, rows):
    with pytest.raises(UserError, match=f"ppo.batch_size: {rows} rows"):
        meshes.check_batch(rows, mesh, field="ppo.batch_size")
