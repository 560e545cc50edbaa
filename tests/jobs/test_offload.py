"""rollout.offload: a run is the same with and without it, may go on either way, and its devices hold so much less."""

import gc
import time
from types import SimpleNamespace

import jax
import numpy as np
import observed
import pytest
import tiny_farm
from same_runs import assert_same_state

from rlhf_jax.errors import UserError
from rlhf_jax.parallel.host_memory import HOST, to_devices, to_host, waits
from rlhf_jax.planning import page_programs
from rlhf_jax.sampling.decode_generator import DecodeGenerator
from rlhf_jax.settings import load_page
from rlhf_jax.training.loop.program_costs import bytes_per_device
from rlhf_jax.training.loop.step import TrainStep

SHORT = {"steps": 3, "eval_every": 1, "save_every": 1, "optimizer.ema": 0.5}


def is_key(x):
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def places():
    """Where arrays lie on the devices: address -> bytes."""
    live = [x for x in jax.live_arrays() if x.sharding.memory_kind != HOST and not is_key(x)]
    # A part of an array that someone has looked at counts as an array of its own, in the same place.
    return {x.unsafe_buffer_pointer(): x.nbytes for x in live}


def on_devices(at_most, others):
    """Bytes of all arrays on the devices but those at `others`; other threads may let go of theirs a little later."""
    until = time.monotonic() + 30
    while True:
        gc.collect()
        found = sum(size for place, size in places().items() if place not in others)
        if found <= at_most or time.monotonic() > until:
            return found
        time.sleep(0.02)


def ppo(farm, folder, offload, stop_before=-1):
    config = tiny_farm.settings("ppo", farm, **SHORT, **{"rollout.offload": offload})
    observed.run("ppo", config, folder, stop_before=stop_before)


@pytest.fixture(scope="module")
def turns(farm, tmp_path_factory):
    """(the workdir of a run whose iterations have one setting and then another, what the devices held in the first)."""
    held, generate, call = [], DecodeGenerator.generate, TrainStep.__call__

    def sampling(self, *asked):
        model = sum(x.nbytes for x in jax.tree.leaves(self._params))
        held.append(("sampling", on_devices(4.7 * model, others) / model))
        return generate(self, *asked)

    def updating(self, state, batch, frozen=None):
        model = sum(x.nbytes for x in jax.tree.leaves(state.params)) / 2
        held.append(("update", on_devices(8.5 * model, others) / model))
        return call(self, state, batch, frozen)

    folder = tmp_path_factory.mktemp("turns")
    # What other tests of this process keep is kept till the end here, so that nothing else comes to lie there.
    kept, others = jax.live_arrays(), places()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecodeGenerator, "generate", sampling)
        patch.setattr(TrainStep, "__call__", updating)
        ppo(farm, folder, "all", stop_before=1)
    ppo(farm, folder, "none", stop_before=2)
    ppo(farm, folder, "all")
    del kept
    return folder, held


def test_a_run_is_the_same_and_goes_on_with_any_other_setting(turns, farm, tmp_path):
    ppo(farm, tmp_path, "none")
    assert_same_state(turns[0], tmp_path)


def test_the_devices_hold_what_the_programs_use(turns):
    """Policy, value model, averages of them, and a copy while sampling; with four moments while updating."""
    _, held = turns
    assert {name for name, _ in held} == {"sampling", "update"}
    # Rows of prompts and of experience are a little more than nothing.
    assert max(x for name, x in held if name == "sampling") < 4.7, held
    assert 8 < max(x for name, x in held if name == "update") < 8.5, held


def plan(folder, job="ppo", **changes):
    folder.mkdir()
    page = load_page(str(tiny_farm.ROOT / f"configs/{job}.py"))
    page.update_from_flattened_dict(changes)
    found = page_programs._stopped(page, {}, folder)
    return found.plan_of(found.page, found.mesh)


def test_a_plan_counts_what_is_there_in_each_phase(tmp_path):
    none, everything = plan(tmp_path / "none"), plan(tmp_path / "all", **{"rollout.offload": "all"})
    weights = bytes_per_device(none.state.params)
    moments = bytes_per_device([x for x in jax.tree.leaves(none.state.opt_state) if x.ndim])
    counts = bytes_per_device(none.state.opt_state) - moments
    models = none.beside
    assert moments == 2 * weights and models > 0.9 * weights
    assert everything.waiting == {"other models": models, "optimizer": moments}
    assert everything.moved == models + 2 * moments and not none.waiting and not none.moved
    assert everything.beside == 0 and everything.state == none.state
    before, after = ({phase.name: phase for phase in x.others} for x in (none, everything))
    assert before["sampling"].beside == weights + moments + counts + models
    assert after["sampling"].beside == weights + counts
    reward = before["sampling"].beside - before["scoring"].beside
    assert before["reading"].beside == moments + counts + reward and after["reading"].beside == counts
    assert after["scoring"].beside == weights + counts


def test_what_a_loss_reads_comes_for_it_too(tmp_path):
    """A teacher: it is the step's argument, and no longer beside the rollout."""
    none, models = (plan(tmp_path / x, "distillation", **{"rollout.offload": x}) for x in ("none", "models"))
    teacher = bytes_per_device(none.frozen)
    assert (
        teacher and models.frozen == none.frozen and none.beside + teacher == models.waiting["other models"]
    )
    assert models.beside == 0 and models.moved == models.waiting["other models"] + teacher
    away = none.others[0].beside - models.others[0].beside
    assert away == models.waiting["other models"]


def test_what_cannot_wait_is_refused(tmp_path, monkeypatch):
    with pytest.raises(
        UserError, match=r"rollout\.offload: all, but with lora\.rank=4 .*; use optimizer or none$"
    ):
        plan(tmp_path / "adapter", **{"rollout.offload": "all", "lora.rank": 4})
    assert plan(tmp_path / "moments", **{"rollout.offload": "optimizer", "lora.rank": 4}).waiting
    memory = SimpleNamespace(kind="device")
    monkeypatch.setattr(jax.Device, "addressable_memories", lambda _: [memory])
    words = r"rollout\.offload: all, but a cpu here has no pinned_host memory \(it has device\); use .*=none$"
    with pytest.raises(UserError, match=words):
        plan(tmp_path / "none", **{"rollout.offload": "all"})


def test_arrays_go_there_and_come_back_as_they_were():
    x = jax.random.normal(jax.random.key(0), (4, 3))
    there = to_host({"x": x})
    assert waits(there) and not waits({"x": x, "number": 3})
    back = to_devices(there)["x"]
    assert back.sharding == x.sharding and np.array_equal(back, x) and to_devices({"x": x})["x"] is x
