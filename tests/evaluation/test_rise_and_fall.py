"""Curves that rise and fall: noise must not show either, whatever it is the noise of, and a true hump must."""

import math

import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.claims.rise_and_fall import rise_and_fall

X = np.arange(10.0)


def curves(rng, height, *, seeds, items=100, of_runs=0.0):
    """Values [S, X, N] around a curve; of_runs: by how much a run is off its curve at each point."""
    noise = rng.normal(size=(1, 1, items)) + rng.normal(size=(seeds, len(X), items))
    return np.asarray(height)[None, :, None] + of_runs * rng.normal(size=(seeds, len(X), 1)) + noise


def rates(height, *, trials=120, **how):
    """The shares of trials in which a curve (rises, falls, surely never rises, surely never falls)."""
    rng, found = np.random.default_rng(0), []
    for _ in range(trials):
        one = rise_and_fall(curves(rng, height, **how), X)
        found.append([one.rise.sign > 0, one.fall.sign > 0, one.rise.sign < 0, one.fall.sign < 0])
    return np.mean(found, 0)


@pytest.mark.parametrize(
    "how", [{"seeds": 1}, {"seeds": 3}, {"seeds": 3, "of_runs": 0.3}, {"seeds": 2}], ids=str
)
def test_a_flat_curve_shows_neither(how):
    """With one seed only the noise of the answers can be told from the curve; with several that of the runs, too."""
    assert max(rates(np.zeros(10), **how)) <= 0.07


def test_a_hump_shows_both():
    hump = 0.8 * np.sin(np.pi * X / 9)
    for seeds in (1, 3):
        rises, falls, *others = rates(hump, seeds=seeds, trials=40)
        assert rises > 0.9 and falls > 0.9 and max(others) == 0
    assert min(rates(hump, seeds=3, of_runs=0.1, trials=40)[:2]) > 0.8


def test_a_curve_that_only_rises_does_not_fall_and_the_other_way_round():
    up = np.linspace(0, 3, 10)
    rises, falls, never_rises, never_falls = rates(up, seeds=3, trials=20)
    assert (rises, falls, never_rises) == (1, 0, 0) and never_falls > 0.5
    rises, falls, never_rises, never_falls = rates(-up, seeds=3, trials=20)
    assert (rises, falls, never_falls) == (0, 1, 0) and never_rises > 0.5


def test_what_is_found_of_a_curve_without_noise():
    height = [1.0, 4.0, 9.0, 7.0, 3.0]
    values = np.broadcast_to(np.array(height)[None, :, None], (2, 5, 6)) + np.arange(6)
    found = rise_and_fall(values, X[:5] * 10)
    means = [one.mean - 2.5 for one in (found.start, found.peak, found.end)]
    assert means == [1, 9, 3] and (found.rise.mean, found.fall.mean) == (8, 6)
    assert found.peak_at == (20,) * 4


def test_the_peak_is_not_measured_where_it_was_chosen():
    """The even items' highest point is far too high by chance. It counts for the odd ones only."""
    values = np.zeros((1, 10, 20))
    values[0, 4, ::2], values[0, 6, 1::2] = 100, 10
    found = rise_and_fall(values, X)
    assert set(found.peak_at) == {4, 6} and found.peak.mean == 0 == found.rise.mean


def test_with_several_seeds_other_runs_tell_where_the_peak_is():
    values = np.zeros((2, 10, 20)) + np.arange(20)
    values[0, 4] += 100
    values[1, 6] += 10
    found = rise_and_fall(values, X)
    assert found.peak.mean == values[0, 0].mean() and found.peak_at == (6, 6, 4, 4)


def test_seeds_without_items_tell_it_too():
    height = np.array([0.0, 5, 9, 6, 1])
    values = np.stack([height, height + 0.1, height - 0.1])[:, :, None]
    found = rise_and_fall(values, X[:5])
    assert found.rise.mean == pytest.approx(9) and found.rise.sign == 1 == found.fall.sign
    assert found.peak_at == (2, 2, 2)


def test_what_is_missing_is_left_out():
    rng = np.random.default_rng(0)
    values = curves(rng, 3 * np.sin(np.pi * X / 9), seeds=2)
    wider = np.full((3, 12, 103), np.nan)  # A seed that failed, places of other curves, items of other rows.
    wider[:2, 1:11, 2:102] = values
    at = np.concatenate([[-1], X, [99]])
    found, wanted = rise_and_fall(wider, at), rise_and_fall(values, X)
    for name in ("start", "peak", "end", "rise", "fall", "peak_at"):
        assert getattr(found, name) == getattr(wanted, name), name
    assert list(found.at_X) == list(X)


def test_a_run_that_ended_early_and_a_half_without_values_are_no_error():
    rng = np.random.default_rng(0)
    values = curves(rng, 3 * np.sin(np.pi * X / 9), seeds=2)
    values[1, 6:] = np.nan
    values[0, 5, ::2] = np.nan
    values[:, 2] = np.nan
    found = rise_and_fall(values, X)
    assert found.rise.sign == 1 == found.fall.sign and found.end.seeds == 1
    assert not any(math.isnan(one.mean) for one in found[:5])


@pytest.mark.parametrize("shape", [(1, 2, 50), (1, 5, 3), (2, 2, 50), (0, 5, 50), (1, 5, 0)])
def test_too_little_to_tell_a_peak_is_refused(shape):
    with pytest.raises(UserError, match=r"a peak can be told from 3 points on, with 4 items or two seeds$"):
        rise_and_fall(np.zeros(shape), np.arange(shape[1], dtype=float))
    with pytest.raises(UserError, match=r"^0 points of 0 items and 0 seeds"):
        rise_and_fall(np.full(shape, np.nan), np.arange(shape[1], dtype=float))
