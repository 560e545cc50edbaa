"""The figure of cost against size, and best of n with prompts computed once."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import scaling
import shared_prompts
from scaling import Cost, Measured, Point

from rlhf_jax.parallel.mesh import make_mesh

BASE = Point(4, 32, 2)


def measured(job, devices, overhead=0.0):
    """A machine of one FLOP a second, on which a token and layer take one, and every step some time besides."""
    costs = {}
    for point in (x for along in scaling.points(BASE).values() for x in along):
        flops = point.rows * point.length * point.layers
        costs[point] = Cost(flops + overhead, flops)
    return Measured(job, devices, costs)


def test_points_share_their_base():
    found = scaling.points(BASE)
    assert [x.rows for x in found["rows"]] == [2, 4, 8, 16]
    assert all(BASE in along for along in found.values())
    assert scaling.base_of("small") == Point(8, 128, 4)


def test_slopes():
    along = scaling.points(BASE)["length"]
    assert scaling.line(measured("sft", 1), "length", along).endswith("| 1.00 | 1.00 |")
    slow = scaling.line(measured("sft", 2, overhead=1e6), "length", along)
    assert slow.startswith("| sft, 2 devices | tokens of a row | 16, 32, 64, 128 |")
    assert slow.endswith("| 0.00 | 1.00 |")


def test_figure_has_every_point():
    jobs = [measured(job, devices, 50.0) for job in scaling.JOBS for devices in (1, 2)]
    svg = ElementTree.fromstring(scaling.figure(jobs, BASE))
    names = [x.get("class", "") for x in svg.iter()]
    assert sum(name.startswith("mark") for name in names) == 2 * 2 * 3 * len(scaling.FACTORS)
    texts = [x.text for x in svg.iter() if x.text]
    assert sum("ideal 1.00" in x for x in texts) == 6
    assert "8 layers, 2 devices: 1.07e+03 s" in texts


def test_a_step_is_measured():
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    cost = scaling.measure(mesh, "dpo", "tiny", Point(2, 16, 1), steps=1)
    assert cost.seconds > 0 and cost.flops > 0


def test_both_ways_of_best_of_n_sample_the_same():
    model = shared_prompts.llama(64, 16, 1, 2, 24)
    apart, shared = (way() for way in shared_prompts.samples(model, 2, 8, 6).values())
    assert apart.tokens_BR.shape == (2 * shared_prompts.SAMPLES, 6)
    assert np.array_equal(apart.tokens_BR, shared.tokens_BR)
    assert np.allclose(apart.logprobs_BR, shared.logprobs_BR, atol=1e-5)
    assert len(np.unique(np.asarray(shared.tokens_BR), axis=0)) > 16
