"""The judges' eyes: agreement with the human, biases, and the two descriptions of their noise agreeing."""

import dataclasses
import itertools
import random

import pytest

from rlhf_jax.microfarm import human, world
from rlhf_jax.microfarm.judges.judge_eyes import (
    CLEAN,
    JUDGES,
    POOL,
    main_reason,
    measure_answer,
    perceived_probability_b,
    perceived_share,
    probability_b,
    score,
    uniform,
)

INSTRUCTION = "Name three colors."
GOOD, BAD = "Sure! Here are three colors:\n- red\n- blue\n- green", "red red"


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str, str]]:
    """Pairs of different demonstrations of one instruction, its input merged into it as judges see it."""
    rng, found = random.Random(3), []
    for row in itertools.islice(world.rows(11), 900):
        merged = row["instruction"] + ("\n\n" + row["input"] if row["input"] else "")
        one, two = world.sample_demonstration(row, rng), world.sample_demonstration(row, rng)
        if one != two:
            found.append((merged, one, two))
    return found


def human_probability(instruction: str, one: str, two: str) -> float:
    return human.probability(instruction, "", one, two)


def test_the_pool_agrees_with_a_human_on_about_65_percent(pairs):
    pool = measure_answer(POOL, pairs, human_probability)
    assert pool["agreement"] == pytest.approx(0.65, abs=0.025)
    assert 0.52 < pool["longer"] < 0.70
    assert pool["first"] == pytest.approx(0.5, abs=0.03)


def test_the_clean_judge_sees_better_than_any_of_the_pool(pairs):
    clean = measure_answer([CLEAN], pairs, human_probability)
    each = {name: measure_answer([name], pairs, human_probability) for name in POOL}
    assert clean["agreement"] > max(found["agreement"] for found in each.values())
    assert clean["accuracy"] > 0.9 and clean["flips"] < 0.15
    strong, weak = POOL[:4], POOL[9:]
    assert (
        min(each[name]["accuracy"] for name in strong) > max(each[name]["accuracy"] for name in weak) + 0.05
    )
    assert sum(found["longer"] > 0.5 for found in each.values()) >= 10


def test_measure_counts_what_sampled_answers_show(pairs):
    name, few = POOL[5], pairs[:300]
    judge, agreed, n = JUDGES[name], 0.0, 0
    for (instruction, one, two), k in itertools.product(few, range(12)):
        u = uniform("test", instruction, one, two, str(k))
        first, second = (one, two) if k % 2 else (two, one)
        picked = second if perceived_probability_b(judge, instruction, first, second, u) > 0.5 else first
        p_one = human_probability(instruction, one, two)
        agreed += p_one if picked == one else 1 - p_one
        n += 1
    assert agreed / n == pytest.approx(measure_answer([name], few, human_probability)["agreement"], abs=0.015)


def test_the_misread_choice_is_b_for_the_stated_share_of_quantiles():
    judge = JUDGES[POOL[12]]
    quantiles = [(k + 0.5) / 2000 for k in range(2000)]
    chosen = [perceived_probability_b(judge, INSTRUCTION, GOOD, BAD, u) > 0.5 for u in quantiles]
    assert sum(chosen) / 2000 == pytest.approx(probability_b(judge, INSTRUCTION, GOOD, BAD), abs=1e-3)


@pytest.mark.parametrize(
    ("bias", "favoured", "other"),
    [("longer", "red blue green red", "red"), ("lists", "- red\n- blue", "red"), ("polite", GOOD, "red")],
)
def test_a_bias_moves_the_choice_its_way(bias, favoured, other):
    blind = dict.fromkeys(("correctness", "completeness", "format", "tone", "length", "longer", "lists"), 0.0)
    judge = dataclasses.replace(JUDGES[CLEAN], **blind, polite=0.0, first=0.0)
    assert probability_b(judge, INSTRUCTION, other, favoured) == 0.5
    biased = dataclasses.replace(judge, **{bias: 0.05})
    assert probability_b(biased, INSTRUCTION, other, favoured) > 0.6
    assert main_reason(biased, INSTRUCTION, other, favoured, winner="b") == bias
    assert main_reason(biased, INSTRUCTION, other, favoured, winner="a") == "other"


def test_position_bias_decides_between_equals():
    first = dataclasses.replace(JUDGES[CLEAN], first=0.1)
    second = dataclasses.replace(JUDGES[CLEAN], first=-0.1)
    assert probability_b(first, INSTRUCTION, GOOD, GOOD) < 0.01
    assert probability_b(second, INSTRUCTION, GOOD, GOOD) > 0.99


def test_ratings_rise_with_quality_and_stay_on_the_scale():
    judge = JUDGES[CLEAN]
    assert score(judge, INSTRUCTION, GOOD) > score(judge, INSTRUCTION, BAD)
    shares = [perceived_share(judge, INSTRUCTION, text, 0.5) for text in (GOOD, BAD)]
    assert shares[0] > shares[1] + 0.2
    assert perceived_share(judge, INSTRUCTION, GOOD, 1 - 1e-12) == 1.0
    assert perceived_share(judge, INSTRUCTION, "", 1e-12) == 0.0


def test_any_text_can_be_judged():
    for judge in JUDGES.values():
        assert 0 < probability_b(judge, "Explain \ud800 quantum tunnelling.", "", "It \x00 tunnels.") < 1
    assert 0 < uniform("\ud800") < 1
