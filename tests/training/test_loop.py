import json
import os
import shlex
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_training as toy
from held_arrays import live_arrays
from ml_collections import ConfigDict

from rlhf_jax.errors import UserError
from rlhf_jax.training.checkpoints.checkpoint import Checkpoints
from rlhf_jax.training.loop import loop, recorder, state
from rlhf_jax.training.loop.metrics import MultiWriter, make_writer


def test_resumed_is_uninterrupted_bit_for_bit(tmp_path):
    whole, step = toy.train(tmp_path / "whole", steps=6, save_every=3, eval_every=2, best="eval/loss")
    assert step.cache_size() == 1
    toy.train(tmp_path / "parts", steps=3, save_every=3, eval_every=2, best="eval/loss")
    before = toy.rows(tmp_path / "parts")
    parts, step = toy.train(tmp_path / "parts", steps=6, save_every=3, eval_every=2, best="eval/loss")
    assert step.cache_size() == 1
    assert toy.same(whole, parts)
    # The shorter run ended with an evaluation at step 3; all else is the same, in the same order.
    assert [r for r in toy.rows(tmp_path / "parts") if r != before[-1]] == toy.rows(tmp_path / "whole")
    assert int(parts.step) == 6
    assert float(parts.extra["kl_coef"]) == pytest.approx(0.5 * 1.01**6)


def test_crash_between_checkpoints_redoes_the_steps_and_their_rows(tmp_path):
    def crash(_, i):
        if i == 5:
            raise RuntimeError("power cut")

    whole, _ = toy.train(tmp_path / "whole", steps=7, save_every=3, eval_every=2)
    with pytest.raises(RuntimeError, match="power cut"):
        toy.train(tmp_path / "parts", steps=7, save_every=3, eval_every=2, hook=crash)
    assert (tmp_path / "parts/checkpoints/3").is_dir()
    assert toy.rows(tmp_path / "parts")[-1]["step"] == 4  # later than the checkpoint: to be written again
    with (tmp_path / "parts/metrics.jsonl").open("a") as f:
        f.write('{"step": 5, "loss": 0.')  # and the kill cut a row
    parts, _ = toy.train(tmp_path / "parts", steps=7, save_every=3, eval_every=2)
    assert toy.same(whole, parts)
    assert toy.rows(tmp_path / "parts") == toy.rows(tmp_path / "whole")


def test_rows_evaluations_and_checkpoints_come_when_they_are_due(tmp_path):
    toy.train(tmp_path, steps=8, save_every=3, eval_every=3, log_every=2)
    rows = toy.rows(tmp_path)
    trained = [row["step"] for row in rows if "loss" in row]
    evaluated = [row["step"] for row in rows if "eval/loss" in row]
    assert trained == [2, 4, 6, 8]
    assert evaluated == [0, 3, 6, 8]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["6", "8"]
    row = next(row for row in rows if row["step"] == 2)
    assert {
        "loss",
        "bias",
        "grad_norm",
        "param_norm",
        "learning_rate",
        "nonfinite",
        "num_tokens",
        "kl_coef",
    } <= row.keys()


def test_timings_and_tokens_per_second(tmp_path):
    toy.train(tmp_path, steps=4, log_every=2, pause=0.05)
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first["timing_s/compile"] > 0
    assert "timing_s/compile" not in second
    for row in (first, second):
        assert 0.05 <= row["timing_s/step"] < 1
    tokens = sum(toy.batch(i)["weight"].sum() for i in (2, 3))
    assert second["perf/tokens_per_s"] == pytest.approx(tokens / (2 * second["timing_s/step"]), rel=1e-3)


def test_every_row_has_the_time_of_its_own_iteration(tmp_path):
    """Also when iterations wait for the device themselves: then one has ended before the next one begins."""
    toy.train(tmp_path, steps=5, log_every=1, pauses=[0.2, 0.1, 0.4, 0.1, 0.3])
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [line["timing_s/step"] for line in lines][1:] == pytest.approx([0.1, 0.4, 0.1, 0.3], abs=0.05)


def test_a_finished_run_does_nothing_more(tmp_path):
    done, _ = toy.train(tmp_path, steps=3, eval_every=2)
    rows = toy.rows(tmp_path)

    def never(_, i):
        raise AssertionError(f"iteration {i} ran again")

    again, step = toy.train(tmp_path, steps=3, eval_every=2, hook=never)
    assert toy.same(done, again)
    assert toy.rows(tmp_path) == rows
    assert step.cache_size() == 0


def test_a_resumed_run_does_not_hold_two_copies(tmp_path):
    def iterate(now, i):
        return now, {}, None

    for steps in (1, 2):
        first = state.create(toy.params(), toy.optimizer(), seed=0)
        with Checkpoints(tmp_path, config={}) as checkpoints:
            last = loop.run_loop(
                first, iterate, steps=steps, workdir=tmp_path, checkpoints=checkpoints, writer=MultiWriter([])
            )
        assert not any(x.is_deleted() for x in jax.tree.leaves(last))
        assert {x.is_deleted() for x in jax.tree.leaves((first.params, first.opt_state))} == {steps == 2}


def test_a_long_run_keeps_no_more_arrays_than_a_short_one(tmp_path):
    """Neither metrics nor batches nor states stay: at equal places of the rhythm there are equally many arrays."""
    held = {}

    def count(_, i):
        if i in (6, 30):
            held[i] = live_arrays(at_most=held.get(6, 0))

    toy.train(tmp_path, steps=32, save_every=99, eval_every=4, log_every=3, hook=count)
    assert held[30] <= held[6]


def still(folder, iterate, **settings):
    """Runs the loop over iterations that are given a state of one number."""
    now = state.create({"w": jnp.zeros(1)}, toy.optimizer(), seed=0)
    with Checkpoints(folder, config={}) as checkpoints:
        writer = make_writer(folder)
        return loop.run_loop(now, iterate, workdir=folder, checkpoints=checkpoints, writer=writer, **settings)


def test_fewer_steps_than_done(tmp_path):
    toy.train(tmp_path, steps=3)
    with pytest.raises(UserError, match=r"steps: 2, but .* has 3 steps done; use at least that many"):
        toy.train(tmp_path, steps=2)


@pytest.mark.parametrize("poison", [4, 5])  # at a boundary of saving, and between two
def test_divergence_stops_saves_the_batch_and_keeps_the_last_good_state(tmp_path, poison):
    with pytest.raises(
        UserError, match=rf"step {poison + 1} is not finite \(loss nan.*step_{poison + 1}\.npz.*learning_rate"
    ):
        toy.train(tmp_path, steps=9, save_every=2, poison=poison)
    with np.load(tmp_path / f"nonfinite/step_{poison + 1}.npz") as saved:
        assert np.isnan(saved["x"][0, 0, 0])
        assert sorted(saved) == ["weight", "x", "y"]
        np.testing.assert_array_equal(saved["weight"], toy.batch(poison)["weight"])
    last = toy.rows(tmp_path)[-1]
    assert (last["step"], last["nonfinite"], last["loss"]) == (poison + 1, 1.0, None)
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())[-1] == 4
    # What is saved is good: with the bad batch mended the run ends as if nothing had happened.
    mended, _ = toy.train(tmp_path, steps=9, save_every=2)
    clean, _ = toy.train(tmp_path / "clean", steps=9, save_every=2)
    assert toy.same(mended, clean)
    assert toy.rows(tmp_path) == toy.rows(tmp_path / "clean")


def test_a_skipped_step_stops_the_run_though_its_loss_is_finite(tmp_path):
    good, bad = {"grad_norm": 1.0, "nonfinite": 0.0}, {"grad_norm": np.inf, "nonfinite": 1.0}
    with pytest.raises(UserError, match=r"step 2 is not finite \(loss 0\.5, grad_norm inf\)"):
        still(
            tmp_path, lambda now, i: (now, {"loss": 0.5, **(bad if i else good)}, {"x": np.ones(2)}), steps=2
        )


def test_sigterm_saves_says_how_to_continue_and_exits_with_0(tmp_path, capsys):
    def stop(_, i):
        if i == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left:
        toy.train(tmp_path / "parts", steps=9, save_every=100, eval_every=5, hook=stop)
    assert left.value.code == 0
    assert signal.getsignal(signal.SIGTERM) == before
    assert (tmp_path / "parts/checkpoints/5").is_dir()
    out = capsys.readouterr().out
    assert "told to stop: saved after step 5; to continue: " in out
    assert out.splitlines()[-1].endswith(shlex.join(sys.orig_argv))
    # An evaluation was due at step 5. There was no time for it; the resumed run makes up for it.
    parts, _ = toy.train(tmp_path / "parts", steps=9, save_every=100, eval_every=5)
    whole, _ = toy.train(tmp_path / "whole", steps=9, save_every=100, eval_every=5)
    assert toy.same(whole, parts)
    assert toy.rows(tmp_path / "parts") == toy.rows(tmp_path / "whole")


def test_online_iterations_may_return_python_numbers_and_no_batch(tmp_path):
    tx = toy.optimizer()
    now = state.create(toy.params(), tx, seed=0)
    with Checkpoints(tmp_path, config={}) as checkpoints:
        writer = make_writer(tmp_path)
        loop.run_loop(
            now,
            lambda now, i: (now, {"objective/kl": 0.5 * i, "score": jnp.float32(i)}, None),
            steps=3,
            workdir=tmp_path,
            checkpoints=checkpoints,
            writer=writer,
            show=("objective/kl",),
        )
    assert toy.rows(tmp_path) == [
        {"step": i + 1, "objective/kl": 0.5 * i, "score": float(i)} for i in range(3)
    ]


def test_metrics_are_fetched_one_iteration_late(tmp_path):
    # Iteration i + 1 must be given to the device before the host waits for the metrics of iteration i.
    order = []

    class Number:
        def __init__(self, i):
            self.i = i

        def __array__(self, dtype=None, copy=None):
            order.append(("fetch", self.i))
            return np.float32(self.i)

        def __float__(self):
            order.append(("fetch", self.i))
            return float(self.i)

    def iterate(now, i):
        order.append(("give", i))
        return now, {"x": Number(i)}, None

    now = state.create(toy.params(), toy.optimizer(), seed=0)
    with Checkpoints(tmp_path, config={}) as checkpoints:
        loop.run_loop(
            now, iterate, steps=3, workdir=tmp_path, checkpoints=checkpoints, writer=MultiWriter([])
        )
    seen = list(dict.fromkeys(order))
    assert seen == [("give", 0), ("give", 1), ("fetch", 0), ("give", 2), ("fetch", 1), ("fetch", 2)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"best": "eval/loss"}, "best_metric: 'eval/loss' needs an evaluation"),
        (
            {"best": "eval/los", "eval_every": 1},
            r"best_metric: 'eval/los' is not measured; did you mean eval/loss\?",
        ),
    ],
)
def test_settings_that_do_not_fit(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        toy.train(tmp_path, **settings)


def test_the_key_is_carried_but_never_consumed(tmp_path):
    last, _ = toy.train(tmp_path, steps=2)
    assert toy.same(last.key, jax.random.key(1))


def fit(folder, scores, *, flops=0.0, **changes):
    """Counts up one number in a workdir, by a page; scores: of the evaluation after each step."""
    page = {
        "log_every": 1,
        "eval_every": 1,
        "save_every": 1,
        "keep_checkpoints": 1,
        "keep_best": 1,
        "steps": 6,
    }
    page |= {"best_metric": "eval/x", "best_mode": "max", "tensorboard": False, "wandb_project": ""}
    tx = toy.optimizer()
    first = state.create({"w": jnp.zeros(1)}, tx, seed=0)
    return loop.fit(
        ConfigDict(page | {"optimizer": {"schedule": "constant"}} | changes),
        str(folder),
        first,
        lambda now, i: (now.replace(params={"w": now.params["w"] + 1}), {"loss": 1.0}, None),
        lambda now, step: {"x": scores[step - 1]},
        steps=len(scores),
        inputs={},
        show=(),
        flops=flops,
    )


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_workdir_keeps_as_many_of_the_last_and_of_the_best_as_the_page_says(tmp_path, mode):
    scores = [7.0, 8.0, 1.0, 2.0, 4.0, 3.0] if mode == "max" else [2.0, 1.0, 9.0, 9.0, 9.0, 9.0]
    best = fit(tmp_path, scores, keep_checkpoints=3, keep_best=2, best_mode=mode)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [1, 2, 4, 5, 6]
    assert best.params["w"].tolist() == [2.0]


def test_the_flops_of_an_iteration_become_its_rows_mfu(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "peak_flops", lambda: 1e6)
    fit(tmp_path, [0.0, 0.0], flops=3e5)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if "loss" in row]
    assert len(trained) == 2
    for row in trained:
        assert row["perf/mfu"] * row["timing_s/step"] == pytest.approx(0.3 / jax.device_count())
