"""Two equal commands in one workdir: the second one leaves with a line, and the first one is not disturbed."""

import time

import tiny_farm


def test_the_second_of_two_equal_commands_is_refused(farm, tmp_path):
    command = ["-m", "rlhf_jax.main", *tiny_farm.arguments("sft", farm, tmp_path / "run", epochs=20.0)]
    first = tiny_farm.start(command)
    until = time.monotonic() + 200
    while not (tmp_path / "run" / "lock.json").exists():
        assert time.monotonic() < until and first.poll() is None, "it never took its workdir"
        time.sleep(0.1)
    out = tiny_farm.finish(tiny_farm.start(command), status=2)
    assert out.startswith(f"error: workdir: {tmp_path}/run is in use by process {first.pid} on ")
    assert len(out.splitlines()) == 1
    tiny_farm.finish(first)
    assert (tmp_path / "run" / "export" / "config.json").exists()
    assert not (tmp_path / "run" / "lock.json").exists()
    assert "continuing" in tiny_farm.finish(tiny_farm.start(command))
