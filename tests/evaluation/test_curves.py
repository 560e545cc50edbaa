"""Choice of charts and treatment of rows; the PNG plots."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from rlhf_jax.evaluation.report.curves import (
    choose_charts,
    metric_names,
    read_series,
    smooth,
    thin,
)
from rlhf_jax.evaluation.report.plots import plot_curves


def drawn(charts):
    return [tuple(s.name for s in c.series) for c in charts]


def test_series_keep_the_last_of_repeated_steps_and_leave_out_what_is_not_finite():
    rows = [
        {"step": 2, "loss": 5.0},
        {"step": 1, "loss": 9},
        {"step": 2, "loss": 4.0},
        {"step": 3, "loss": math.nan},
        {"step": 4, "loss": None},
        {"step": 5, "loss": True},
        {"step": 6, "eval/loss": 1.0},
    ]
    s = read_series(rows, "loss")
    assert s.steps.tolist() == [1, 2] and s.values.tolist() == [9, 4] and s.n_nonfinite == 1
    assert metric_names(rows) == ["loss", "eval/loss"]


def test_defaults_overlay_eval_and_show_each_metric_once():
    rows = [{"step": 0, "eval/rewards/accuracies": 0.5, "eval/loss": 0.7, "eval/utility": 0.1}]
    names = ("loss", "rewards/accuracies", "rewards/chosen", "rewards/rejected", "lr")
    rows += [{"step": i, **dict.fromkeys(names, 1.0)} for i in range(3)]
    assert drawn(choose_charts("reward_model-2", rows)) == [
        ("loss", "eval/loss"),
        ("rewards/accuracies", "eval/rewards/accuracies"),
        ("rewards/chosen", "rewards/rejected"),
        ("eval/utility",),
    ]


def test_curves_override_the_default_and_unknown_stages_fall_back():
    rows = [{"step": i, "loss": 1.0, "lr": 0.1, "objective/kl": 2.0} for i in range(2)]
    assert drawn(choose_charts("sft", rows, {"sft": ["lr", "absent"]})) == [("lr",)]
    assert drawn(choose_charts("sft", rows, {"sft": [("lr", "loss")]})) == [("lr", "loss")]
    assert drawn(choose_charts("mystery", rows)) == [("loss",), ("objective/kl",)]
    assert choose_charts("mystery", []) == []


def test_smooth_keeps_straight_lines_and_matches_polyfit():
    line = 3 - 0.5 * np.arange(50)
    np.testing.assert_allclose(smooth(line, 9), line)
    y = np.random.default_rng(0).normal(size=30)
    for i in (0, 2, 15, 29):
        a = min(max(i - 3, 0), 30 - 7)
        want = np.polyval(np.polyfit(np.arange(a, a + 7), y[a : a + 7], 1), i)
        assert smooth(y, 7)[i] == pytest.approx(want)
    assert smooth(np.array([1.0, 2.0]), 9).tolist() == [1, 2]


def test_thin_averages_equal_groups_and_ends_at_the_last_step():
    rows = [{"step": i, "x": float(i % 2)} for i in range(1, 1002)]
    s = thin(read_series(rows, "x"), 100)
    assert len(s.steps) <= 100 and s.steps[-1] == 1001
    assert np.ptp(s.values[:-1]) < 0.2  # each mean is over as many points as the next
    assert thin(s, 200) is s


def test_plots_are_written_per_group(tmp_path):
    rows = [json.loads(json.dumps({"step": i, "loss": 1 / i, "rewards/margins": i})) for i in range(1, 80)]
    rows += [{"step": i, "eval/loss": 2 / i, "eval/utility": 0.1 * i} for i in (10, 20)]
    rows += [{"step": 80, "once/only": 1.0, "x/../../evil": 1.0}, {"step": 81, "x/../../evil": 2.0}]
    paths = plot_curves(rows, tmp_path / "plots")
    assert sorted(p.name for p in paths) == ["eval.png", "loss.png", "rewards.png", "x.png"]
    assert all(p.parent == tmp_path / "plots" and p.read_bytes()[:4] == b"\x89PNG" for p in paths)
    assert plot_curves([], tmp_path / "none") == []


def test_matplotlib_waits_until_a_plot_is_drawn_and_jax_is_never_loaded():
    code = (
        "import sys, rlhf_jax.evaluation.report.page, rlhf_jax.evaluation.report.plots;"
        "import rlhf_jax.evaluation.leaderboards.leaderboard;"
        "print(sorted({'jax', 'flax', 'matplotlib', 'pandas', 'transformers'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
