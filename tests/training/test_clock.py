"""Times are those of the devices: a result that comes late is counted late, whoever else was waited for."""

import json
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax.training.loop import recorder, step
from rlhf_jax.training.loop.metrics import JsonlWriter
from rlhf_jax.training.loop.recorder import CompileWatch, done_at
from rlhf_jax.training.progress import Progress


class Result:
    """Stands for an array that is there at a certain moment."""

    def __init__(self, there):
        self.there = there


class Machine:
    """A host and a device with a clock each: the device works for so long on each thing, one after the other."""

    def __init__(self):
        self.host = self.device = self.free = 0.0

    def give(self, seconds):
        self.free = max(self.free, self.host) + seconds
        return Result(self.free)

    def wait(self, x):
        results = [
            r for r in jax.tree.leaves(x, is_leaf=lambda r: isinstance(r, Result)) if isinstance(r, Result)
        ]
        self.device = max([self.device, self.host if not results else 0.0, *(r.there for r in results)])

    def perf_counter(self):
        return self.device if threading.current_thread().name == "clock" else self.host


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(recorder.jax, "block_until_ready", machine.wait)
    monkeypatch.setattr(recorder.time, "perf_counter", machine.perf_counter)
    return machine


@pytest.fixture
def rows(tmp_path):
    def run(iterations, save_after=None, machine=None, **settings):
        """iterations: functions that give what `push` is given."""
        writer = JsonlWriter(tmp_path / "metrics.jsonl")
        writer.start(None)
        with recorder.Recorder(writer, Progress(9), tmp_path, 9, 1, (), **settings) as found:
            for step, make in enumerate(iterations, 1):
                found.push(step, make(), None)
                if step == save_after:
                    found.flush()
                    machine.host = machine.device
                    with found.timed("save"):
                        machine.host += 30.0
            found.flush()
        return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]

    return run


def _watched(monkeypatch, results):
    """The recorder hands arrays of the metrics to the clock; here the device's own results stand for them."""
    given = iter(results)
    monkeypatch.setattr(recorder, "done_at", lambda _: done_at(next(given)()))


def test_an_iteration_that_nobody_waited_for_has_its_own_time(machine, rows, monkeypatch):
    """The host is at once done with four iterations, each of which takes the device long."""
    takes = [30.0, 10.0, 40.0, 10.0]
    _watched(monkeypatch, [lambda s=s: machine.give(s) for s in takes])
    found = rows([lambda: {"num_tokens": 10.0}] * 4)
    assert [row["timing_s/step"] for row in found] == takes
    assert [row["perf/tokens_per_s"] for row in found] == pytest.approx([10 / s for s in takes])


def test_a_device_that_waits_for_the_host_is_timed_with_it(machine, rows, monkeypatch):
    def late():
        machine.host += 50.0
        return {}

    _watched(monkeypatch, [lambda: machine.give(1.0)] * 3)
    assert [row["timing_s/step"] for row in rows([late] * 3)] == [51.0, 50.0, 50.0]


def test_a_pause_is_nobodys_time(machine, rows, monkeypatch):
    _watched(monkeypatch, [lambda: machine.give(10.0)] * 3)
    found = rows([dict] * 3, save_after=2, machine=machine)
    assert [row["timing_s/step"] for row in found] == [10.0] * 3
    assert found[2]["timing_s/save"] == 30.0


def test_phases_are_parts_of_the_iteration(machine, rows, monkeypatch):
    last = []
    _watched(monkeypatch, [lambda: last[-1]] * 2)

    def iteration():
        phases = {}
        for name, seconds in (("rollout", 30.0), ("score", 10.0), ("update", 20.0)):
            last.append(machine.give(seconds))
            phases[f"timing_s/{name}"] = done_at(last[-1])
        return phases

    for row in rows([iteration] * 2):
        assert [row[f"timing_s/{name}"] for name in ("rollout", "score", "update")] == [30.0, 10.0, 20.0]
        assert row["timing_s/step"] == 60.0


def test_mfu_is_the_train_steps_share_of_the_peak(machine, rows, monkeypatch):
    monkeypatch.setattr(recorder, "peak_flops", lambda: 1000.0)
    last = []
    _watched(monkeypatch, [lambda: last[-1]])

    def iteration():
        sampled, updated = machine.give(5.0), machine.give(2.0)
        last.append(updated)
        return {"timing_s/rollout": done_at(sampled), "timing_s/update": done_at(updated)}

    (row,) = rows([iteration], flops=50.0)
    assert row["perf/mfu"] == pytest.approx(50 / 2 / (1000 * jax.device_count()))


def test_a_device_without_a_known_peak_has_no_mfu(rows):
    assert step.peak_flops() is None
    assert "perf/mfu" not in rows([dict], flops=50.0)[0]


def test_peaks_are_found_by_the_devices_name():
    class Device:
        device_kind = "NVIDIA H100 80GB HBM3"

    assert step.peak_flops(Device()) == 989e12
    Device.device_kind = "TPU v5 lite"
    assert step.peak_flops(Device()) == 197e12


def test_an_error_of_the_device_reaches_whoever_asks():
    x = jnp.ones(3)
    x.delete()
    with pytest.raises(RuntimeError, match="deleted"):
        done_at(x).result(10)
    assert done_at(jnp.ones(3)).result(10) <= time.perf_counter()


def test_of_a_compilation_only_the_part_inside_is_left_out():
    watch = CompileWatch()
    watch._spans = [(1.0, 4.0), (6.0, 7.0)]
    assert watch.within(0.0, 10.0) == 4.0
    assert watch.within(3.0, 6.5) == 1.5
    assert watch.count(3.0, 6.5) == 1


def test_compilations_are_counted_in_the_row_in_which_they_happened(rows):
    def compiled(n):
        return lambda: {"loss": jax.jit(lambda x: x * n)(1.0)}

    first, second = rows([compiled(2), lambda: {"loss": jnp.float32(1)}])
    assert first["perf/compiles"] >= 1
    assert "perf/compiles" not in second
