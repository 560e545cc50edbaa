"""Findings about judges, labels, the leaderboard and an evaluation as a whole, on evidence that has them or not."""

import math
import random
from itertools import combinations, permutations

import numpy as np
import pytest
from doctor_curves import responses, rows

from rlhf_jax.evaluation.doctor import examine_results, judge_rules, label_rules
from rlhf_jax.evaluation.doctor.findings import NOTE, PROBLEM, WARNING
from rlhf_jax.evaluation.leaderboards.leaderboard import LeaderboardRow
from rlhf_jax.evaluation.measures.agreement import Biases
from rlhf_jax.evaluation.measures.length_control import LengthControlled
from rlhf_jax.evaluation.measures.win_rate import WinRate
from rlhf_jax.evaluation.report.report_data import ReportStage


def taste(first=50.0, n_first=800, longer=50.0, n_longer=400, **more):
    return judge_rules.JudgeTaste("j", Biases(longer, n_longer, math.nan, 0, first, n_first), **more)


def test_a_judge_prefers_a_place():
    look = judge_rules.judge_prefers_a_place
    # AlpacaEval's judges: 45.6 to 54 %.
    assert look([taste(45.6), taste(54)]) is None
    assert look([taste(60)]).severity == WARNING and look([taste(80)]).severity == PROBLEM
    assert "first in 40.0 % of 800" in look([taste(40), taste(50)]).evidence
    assert look([taste(60, n_first=40)]) is None and look([taste(math.nan, n_first=0)]) is None
    assert look([taste(60, alone=False), taste(50)]).severity == NOTE
    assert "and 2 more" in look([taste(60)] * 5).evidence


def test_a_human_without_noise_is_as_sure_as_they_mean():
    """People who err on a fifth of pairs agree on 68 %, and what they prefer in 90 % is seen in 74 %."""
    e, p = 0.2, 0.9
    seen, agreement = 100 * (e + (1 - 2 * e) * p), 100 * (1 - 2 * e * (1 - e))
    assert judge_rules.without_noise(seen, agreement) == pytest.approx(90)
    assert math.isnan(judge_rules.without_noise(70, 50)) and judge_rules.without_noise(95, 60) == 100


def test_a_judge_prefers_length():
    look = judge_rules.judge_prefers_length
    # MT-bench's: 68 %; longer answers may be better, and nothing here says so.
    assert look([taste(longer=68)]) is None and look([taste(longer=85)]).severity == WARNING
    assert look([taste(longer=85, human=84.0)]) is None
    assert "a human without noise in 60.0 %" in look([taste(longer=75, human=60.0)]).evidence
    assert look([taste(longer=85, n_longer=20)]) is None and look([taste(longer=95, alone=False)]) is None


def board(raw, equal, truth=None, error=1.5):
    rate = WinRate(raw, error, (raw - 3, raw + 3), 1, 1, 0, 1000, 0, raw)
    fitted = LengthControlled(equal, error, 0.1, {}, 1000, 0, 0, rate, False)
    known = (
        None if truth is None else type("U", (), {"win_rate": truth, "interval": (truth - 2, truth + 2)})()
    )
    base = LeaderboardRow("base", "j", "base", None, 40, 1000)
    return [base, LeaderboardRow("ppo", "j", "base", rate, 80, 1000, known, length_controlled=fitted)]


def test_length_carries_the_win_rate():
    look = judge_rules.length_carries_the_win_rate
    assert look(board(60, 58)) is None and look(board(48, 40)) is None
    assert look(board(60, 51)).severity == WARNING
    assert "ppo 60.0 %, at equal length 51.0 % (80 characters, baseline 40)" in look(board(60, 51)).evidence
    # What the truth knows to be better is, whatever its length; and what leads at equal length, too.
    assert look(board(60, 51, truth=80)).severity == NOTE == look(board(70, 60)).severity


def pair(prompt, one, two, better, **more):
    return {
        "instruction": prompt,
        "input": "",
        "output_1": one,
        "output_2": two,
        "preference": better,
        **more,
    }


def drawn_labels(noise, seed=0):
    """Labels of three outputs on 200 prompts by people who see quality with noise; every pair twice, in both orders."""
    rng, found = random.Random(seed), []
    for i in range(200):
        quality = {f"{i} {k}": rng.random() for k in range(3)}
        for one, two in combinations(quality, 2):
            for first, second in ((one, two), (two, one)):
                gap = quality[second] - quality[first] + noise * rng.gauss(0, 1)
                found.append(pair(str(i), first, second, 2.0 if gap > 0 else 1.0))
    return found


def test_labels_contradict_each_other():
    def seen(labels):
        return label_rules.labels_contradict(label_rules.count_contradictions(labels))

    assert seen(drawn_labels(0.1)) is None
    assert seen(drawn_labels(0.5)).severity in (NOTE, WARNING)
    coins = label_rules.count_contradictions(drawn_labels(100.0))
    assert coins.both_ways / coins.repeated == pytest.approx(0.5, abs=0.06) and coins.repeated == 600
    assert label_rules.labels_contradict(coins).severity == PROBLEM
    # A file of a dozen pairs says nothing, and noise that was asked for is known.
    assert seen(drawn_labels(100.0)[:30]) is None
    noisy = [row | {"is_noisy": True} for row in drawn_labels(100.0)]
    assert seen(noisy) is None and "3" not in str(seen(drawn_labels(0.1) + noisy))
    ties = [row | {"preference": 1.5} for row in drawn_labels(1.0)] + [pair("x", "a", "b", None)]
    assert label_rules.count_contradictions(ties) == label_rules.Contradictions(0, 0, 0, 0)


def test_circles_are_counted_as_by_hand():
    """Every tournament on three outputs: two of the eight are circles. And many on six, against their definition."""
    for bits in range(8):
        labels = [
            pair("p", a, b, 2.0 if bits >> i & 1 else 1.0)
            for i, (a, b) in enumerate((("a", "b"), ("b", "c"), ("c", "a")))
        ]
        found = label_rules.count_contradictions(labels)
        assert (found.triples, found.circles) == (1, int(bits in (0, 7)))
    for seed in range(30):
        rng = random.Random(seed)
        beats = {
            (a, b) if rng.random() < 0.5 else (b, a)
            for a, b in combinations("abcdef", 2)
            if rng.random() < 0.8
        }
        found = label_rules.count_contradictions([pair("p", a, b, 1.0) for a, b in beats])
        of = [[(x, y) in beats for x, y in permutations(some, 2)] for some in combinations("abcdef", 3)]
        assert found.triples == sum(sum(known) == 3 for known in of)
        assert found.circles == sum(
            all(sum((x, y) in beats for y in some) == 1 for x in some) for some in combinations("abcdef", 3)
        )


def test_an_evaluation_is_looked_at_as_a_whole():
    stages = [
        ReportStage("ppo", rows(responses(np.linspace(40, 80, 80))), settings={"kl_coef": 0.0}),
        ReportStage("x"),
    ]
    accuracy = examine_results.RewardAccuracy
    found = examine_results.examine_results(
        stages,
        board=board(60, 51),
        judges=[taste(70)],
        labels=drawn_labels(100.0),
        rewards=[accuracy(55, 57, 990, "pairs"), accuracy(60, 64, 500, "clear pairs")],
        config={"judges": "pool.yaml"},
    )
    assert {(one.subject, one.name) for one in found.findings} == {
        ("ppo", "length drifts"),
        ("judges", "judge prefers a place"),
        ("labels", "labels contradict each other"),
        ("reward model", 'reward model no better than "longer wins"'),
        ("leaderboard", "length carries the win rate"),
    }
    assert (
        found.looked_for["ppo"] == ["length drifts", "responses do not end"] and "x" not in found.looked_for
    )
    assert next(one for one in found.findings if one.subject == "judges").setting == "judges=pool.yaml"
    # Where outputs are nearly equal, any model is a coin: that of clear pairs counts.
    better = examine_results.examine_results(
        rewards=[accuracy(55, 57, 990, "pairs"), accuracy(80, 64, 500, "clear")]
    )
    assert better.findings == () and list(better.looked_for) == ["reward model"]
    assert examine_results.examine_results() == examine_results.NOTHING
