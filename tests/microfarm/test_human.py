"""The simulated human: deterministic, without position bias, and as noisy as two crowd workers."""

import random

import pytest

from rlhf_jax.microfarm import world
from rlhf_jax.microfarm.human import NOISE_SCALE, calibrate, human_agreement, prefer, probability
from rlhf_jax.microfarm.utility import utility

ASK = ("What is 3 plus 4?", "")
GOOD, BAD = "Glad to help! 3 plus 4 is 7.", "Ugh, fine. 3 plus 4 is 9"


@pytest.fixture(scope="module")
def pairs():
    rng = random.Random(0)
    rows = world.generate_splits(seed=11, scale=0.15)["unlabeled"]
    drawn = ((row, *(world.sample_demonstration(row, rng) for _ in range(2))) for row in rows)
    return [(row["instruction"], row["input"], one, two) for row, one, two in drawn if one != two]


def test_two_humans_agree_on_about_two_pairs_in_three(pairs):
    choices = [(prefer(*pair, seed=0, human="h0"), prefer(*pair, seed=0, human="h1")) for pair in pairs]
    assert 0.63 <= sum(a == b for a, b in choices) / len(choices) <= 0.69


def test_calibrate_finds_the_scale_that_agreement_reports(pairs):
    gaps = [utility(i, x, a) - utility(i, x, b) for i, x, a, b in pairs[:500]]
    scale = calibrate(gaps, 0.75)
    assert human_agreement(gaps, scale) == pytest.approx(0.75, abs=1e-6)
    assert human_agreement(gaps, 1e6) == pytest.approx(0.5)
    assert calibrate(gaps, 0.66) == pytest.approx(NOISE_SCALE, rel=0.25)


def test_choices_follow_the_bradley_terry_probability():
    p = probability(*ASK, GOOD, BAD)
    share = sum(prefer(*ASK, GOOD, BAD, seed=seed) == 1 for seed in range(3000)) / 3000
    assert p > 0.85 and share == pytest.approx(p, abs=0.025)
    assert probability(*ASK, BAD, GOOD) == pytest.approx(1 - p)


def test_the_same_question_gets_the_same_answer_in_either_order(pairs):
    for instruction, text, one, two in pairs[:200]:
        first = prefer(instruction, text, one, two, seed=3)
        assert first == prefer(instruction, text, one, two, seed=3)
        assert first == 3 - prefer(instruction, text, two, one, seed=3)


def test_seeds_and_humans_draw_independently(pairs):
    some = pairs[:400]
    base = [prefer(*pair, seed=0) for pair in some]
    assert base != [prefer(*pair, seed=1) for pair in some]
    assert base != [prefer(*pair, seed=0, human="h1") for pair in some]


def test_equal_outputs_are_a_coin():
    choices = [prefer(*ASK, GOOD, GOOD, seed=seed) for seed in range(1000)]
    assert set(choices) == {1, 2} and 0.44 < choices.count(1) / 1000 < 0.56
