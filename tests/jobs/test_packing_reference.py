"""DPO on packed rows: the reference's log-probs are kept in the rows' layout, or computed with every step."""

import math

import pytest
import tiny_farm

from rlhf_jax.methods import dpo


def run(farm, folder, cache, **changes):
    page = {"data.packing": "on", "epochs": 0.2, "batch_size": 4, "reference_cache": str(cache)}
    dpo.run(tiny_farm.settings("dpo", farm, **(page | changes)), str(folder))
    return tiny_farm.rows(folder)


def test_both_ways_are_the_same_numbers(farm, tmp_path):
    cache = tmp_path / "cache"
    first = run(farm, tmp_path / "one", cache)
    assert first[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    kept = set(cache.iterdir())
    assert len(kept) == 2 and run(farm, tmp_path / "two", cache) == first and set(cache.iterdir()) == kept
    stepwise = run(farm, tmp_path / "three", tmp_path / "unused", reference="step", microbatches=2)
    for a, b in zip(stepwise, first, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=5e-6)
    run(farm, tmp_path / "four", cache, **{"data.packing": "off"})  # other rows, other arrays
    assert len(set(cache.iterdir())) == 4
