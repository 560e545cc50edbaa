"""Times are those of the devices: a result that comes late is counted late, whoever else was waited for."""

import json
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.training.loop import program_costs, recorder
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
    def run(iterations, log_every=1, pause_after=None, pause=None, machine=None, **settings):
        """iterations: functions that give what `push` is given. pause: a context of the recorder."""
        writer = JsonlWriter(tmp_path / "metrics.jsonl")
        writer.start(None)
        with recorder.Recorder(writer, Progress(9), tmp_path, 9, log_every, (), **settings) as found:
            for step, make in enumerate(iterations, 1):
                found.push(step, make(), None)
                if step == pause_after:
                    found.flush()
                    machine.host = machine.device
                    with pause(found):
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


@pytest.mark.parametrize(
    ("name", "pause", "step"),  # the step in whose row its length stands
    [("save", lambda found: found.timed("save"), 3), ("eval", lambda found: found.evaluation(2), 2)],
)
def test_a_pause_is_nobodys_time(machine, rows, monkeypatch, name, pause, step):
    _watched(monkeypatch, [lambda: machine.give(10.0)] * 3)
    found = rows([dict] * 3, pause_after=2, pause=pause, machine=machine)
    assert [row["timing_s/step"] for row in found if "timing_s/step" in row] == [10.0] * 3
    named = [(row["step"], row[f"timing_s/{name}"]) for row in found if f"timing_s/{name}" in row]
    assert named == [(step, 30.0)]


def test_the_part_of_an_iteration_in_which_programs_were_compiled_is_named_apart(machine, rows, monkeypatch):
    _watched(monkeypatch, [lambda: machine.give(10.0)] * 2)

    def compiled():
        machine.host += 5.0
        jax.monitoring.record_event_duration_secs(recorder._COMPILE_EVENT, 4.0)
        return {"num_tokens": 22.0}

    first, second = rows([compiled, dict])
    assert first["timing_s/step"] == 5.0 + 10.0 - 4.0
    assert (first["timing_s/compile"], first["perf/compiles"], first["perf/tokens_per_s"]) == (4.0, 1.0, 2.0)
    assert second["timing_s/step"] == 10.0 and "timing_s/compile" not in second


@pytest.mark.parametrize("log_every", [1, 2])
def test_phases_are_parts_of_the_iteration(machine, rows, monkeypatch, log_every):
    last = []
    _watched(monkeypatch, [lambda: last[-1]] * 2)

    def iteration():
        phases = {}
        for name, seconds in (("rollout", 30.0), ("score", 10.0), ("update", 20.0)):
            last.append(machine.give(seconds))
            phases[f"timing_s/{name}"] = done_at(last[-1])
        return phases

    found = rows([iteration] * 2, log_every)
    assert len(found) == 2 // log_every
    for row in found:
        assert [row[f"timing_s/{name}"] for name in ("rollout", "score", "update")] == [30.0, 10.0, 20.0]
        assert row["timing_s/step"] == 60.0


@pytest.mark.parametrize("log_every", [1, 3])
def test_mfu_is_the_train_steps_share_of_the_peak(machine, rows, monkeypatch, log_every):
    monkeypatch.setattr(recorder, "peak_flops", lambda: 1000.0)
    last = []
    _watched(monkeypatch, [lambda: last[-1]] * log_every)

    def iteration():
        sampled, updated = machine.give(5.0), machine.give(2.0)
        last.append(updated)
        return {"timing_s/rollout": done_at(sampled), "timing_s/update": done_at(updated)}

    (row,) = rows([iteration] * log_every, log_every, flops=50.0)
    assert row["perf/mfu"] == pytest.approx(50 / 2 / (1000 * jax.device_count()))


def test_a_device_without_a_known_peak_has_no_mfu(rows):
    assert program_costs.peak_flops() is None
    assert "perf/mfu" not in rows([dict], flops=50.0)[0]


def test_peaks_are_found_by_the_devices_name():
    class Device:
        device_kind = "NVIDIA H100 80GB HBM3"

    assert program_costs.peak_flops(Device()) == 989e12
    Device.device_kind = "TPU v5 lite"
    assert program_costs.peak_flops(Device()) == 197e12


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

    # No `jnp.float32(1)` in the second: newer jax compiles a program for it, in a process that has not done so before.
    first, second = rows([compiled(2), lambda: {"loss": jax.device_put(np.float32(1))}])
    assert first["perf/compiles"] >= 1
    assert "perf/compiles" not in second
    # Of this process, in GiB: jax alone takes a twentieth, and no machine of these tests has a thousand.
    assert 0.05 < first["perf/peak_memory_gib"] <= second["perf/peak_memory_gib"] < 1000
