"""The bandit of dpo-rlaif's figure 6: against NumPy in float64 over the samples themselves, and what its files say."""

import csv
import io
import json
import math
import re
from contextlib import redirect_stdout
from html.parser import HTMLParser

import numpy as np
import observed
import pytest
import tiny_farm

from rlhf_jax.errors import UserError
from rlhf_jax.jobs import bandit
from rlhf_jax.jobs.bandit import bandit_policies as policies
from rlhf_jax.jobs.bandit.bandit_job import run_bandit
from rlhf_jax.jobs.bandit.bandit_results import finding_text, over_seeds

K, PAIRS, TAUGHT, RATE, BETA = 6, 40, 30, 0.3, 0.7
STUDENT, TEACHER = policies.bell_curve(K, 2.0, 3.0), policies.bell_curve(K, 4.0, 3.0)


def settings(tmp_path, **changes):
    return tiny_farm.settings("bandit", tmp_path, **changes)


def samples(seed):
    """The arms that a seed draws, one by one."""
    of_student, of_teacher = np.random.default_rng(seed).spawn(2)
    return of_student.choice(K, (PAIRS, 2), p=STUDENT), of_teacher.choice(K, TAUGHT, p=TEACHER)


def rewards_by_hand(arms_N2, steps):
    """(rewards, loss of the last step) as the notebook has them: a sign for each pair, a tie's is -1."""
    reward_K, loss = np.zeros(K), math.nan
    for _ in range(steps):
        slope_K, loss = np.zeros(K), 0.0
        for i, j in arms_N2:
            sign = 1.0 if i > j else -1.0
            z = sign * (reward_K[i] - reward_K[j])
            loss += math.log1p(math.exp(-z)) / len(arms_N2)
            pull = -sign / (1 + math.exp(z)) / len(arms_N2)
            slope_K[i] += pull
            slope_K[j] -= pull
        reward_K -= RATE * slope_K
    return reward_K, loss


def logits_by_hand(arms_N, steps):
    """(logits, loss of the last step) of a softmax fitted to samples."""
    logits_K, loss = np.zeros(K), math.nan
    for _ in range(steps):
        policy_K = np.exp(logits_K) / np.exp(logits_K).sum()
        loss = -np.mean([math.log(policy_K[k]) for k in arms_N])
        logits_K -= RATE * np.mean([policy_K - (np.arange(K) == k) for k in arms_N], axis=0)
    return logits_K, loss


def drawn(seed):
    return policies.draw_samples(STUDENT, TEACHER, PAIRS, TAUGHT, seed)


def test_fits_are_those_of_every_sample_by_itself():
    pairs_SKK, taught_SK = (np.stack([drawn(seed)[i] for seed in (3, 4)]) for i in (0, 1))
    rewards = policies.descend(policies.pair_loss_of, pairs_SKK, K, 25, RATE)
    logits = policies.descend(policies.imitation_loss, taught_SK, K, 25, RATE)
    for s, seed in enumerate((3, 4)):
        arms_N2, arms_N = samples(seed)
        assert (arms_N2[:, 0] == arms_N2[:, 1]).sum() == np.trace(pairs_SKK[s]) > 3
        for fit, by_hand, arms in ((rewards, rewards_by_hand, arms_N2), (logits, logits_by_hand, arms_N)):
            table_K, last = by_hand(arms, 25)
            np.testing.assert_allclose(fit.table_SK[s], table_K, atol=2e-6)
            assert fit.losses_ST[s, -1] == pytest.approx(last, abs=1e-6)
            assert fit.losses_ST.shape == (2, 25)
            # The loss after the last step is that which one more step would begin with.
            assert fit.after_S[s] == pytest.approx(by_hand(arms, 26)[1], abs=1e-6)


def test_policies_of_the_paper():
    student_K, teacher_K = policies.bell_curve(100, 40, 300), policies.bell_curve(100, 80, 300)
    for policy_K, peak in ((student_K, 40), (teacher_K, 80)):
        weights = [math.exp(-((k - peak) ** 2) / 300) for k in range(100)]
        np.testing.assert_allclose(policy_K, np.array(weights) / sum(weights), rtol=1e-12)


def test_closed_form_of_rlaif():
    reward_K = np.array([0.3, -1.0, 0.0, 2.0, 0.5, 0.1])
    found_K = policies.best_policy(STUDENT, reward_K, BETA)
    weights = [p * math.exp(r / BETA) for p, r in zip(STUDENT, reward_K, strict=True)]
    np.testing.assert_allclose(found_K, np.array(weights) / sum(weights), rtol=1e-12)

    def worth(policy_K):
        return policy_K @ reward_K - BETA * policy_K @ np.log(policy_K / STUDENT)

    others = np.random.default_rng(0).dirichlet(np.ones(K), 50)
    assert max(map(worth, others)) < worth(found_K)
    # Rewards whose exponential no float holds, and an arm that the student never chooses.
    np.testing.assert_array_equal(policies.best_policy(STUDENT, reward_K, 1e-6).round(9), np.eye(K)[3])
    assert policies.best_policy(np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.0, 99.0]), 1.0)[2] == 0


def test_ties_are_ln_2_and_move_nothing():
    fit = policies.descend(policies.pair_loss_of, np.diag([5, 3, 2])[None], 3, 10, 1.0)
    assert not fit.table_SK.any()
    np.testing.assert_allclose(fit.losses_ST, math.log(2), rtol=1e-6)
    decided = np.zeros((3, 3))
    decided[2, 0] = 5
    alone, tied = (
        policies.descend(policies.pair_loss_of, x[None], 3, 1, 1.0)
        for x in (decided, decided + np.diag([0, 5, 0]))
    )
    # They are counted in the mean, so a pair that is decided pulls half as much.
    np.testing.assert_allclose(tied.table_SK, alone.table_SK / 2, rtol=1e-6)


def test_what_holds_for_every_fit():
    pairs_KK = drawn(0).pairs_KK.copy()
    pairs_KK[:, 1] = pairs_KK[1] = 0  # An arm that nobody chose.
    fit = policies.descend(policies.pair_loss_of, pairs_KK[None], K, 200, RATE)
    assert fit.table_SK[0, 1] == 0 and abs(fit.table_SK.sum()) < 1e-4
    assert (np.diff(fit.losses_ST[0]) < 0).all()
    assert not np.triu(pairs_KK, 1).any()  # The better arm is the row.
    # Twice the rows are the same fit: the loss is a mean.
    twice = policies.descend(policies.pair_loss_of, 2 * pairs_KK[None], K, 200, RATE)
    np.testing.assert_allclose(twice.table_SK, fit.table_SK, atol=1e-6)
    taught_K = drawn(0).taught_K
    long = policies.descend(policies.imitation_loss, taught_K[None], K, 1000, 10 * RATE)
    np.testing.assert_allclose(policies.softmax(long.table_SK[0]), taught_K / TAUGHT, atol=0.01)


def test_the_teachers_samples_do_not_depend_on_the_pairs():
    few, many = (policies.draw_samples(STUDENT, TEACHER, pairs, TAUGHT, 7) for pairs in (5, 500))
    np.testing.assert_array_equal(few.taught_K, many.taught_K)
    assert few.pairs_KK.sum() == 5 and many.pairs_KK.sum() == 500 and few.taught_K.sum() == TAUGHT


def test_a_seed_beside_others_is_that_seed_alone(tmp_path):
    both, alone = run_bandit(settings(tmp_path, seed=5)), run_bandit(settings(tmp_path, seed=6, n_seeds=1))
    assert both.seeds == (5, 6) and alone.seeds == (6,)
    for name in both.policies:
        np.testing.assert_allclose(both.policies[name][1], alone.policies[name][0], rtol=1e-4)
        np.testing.assert_allclose(both.policies[name].sum(1), 1)
    assert (both.rewards.table_SK[0] != both.rewards.table_SK[1]).any()


class Tags(HTMLParser):
    """Counts tags; raises AssertionError for one that is closed out of order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, what was printed, fields that were read)."""
    folder, read, out = tmp_path_factory.mktemp("bandit"), set(), io.StringIO()
    with redirect_stdout(out):
        bandit.run(observed.Settings(settings(folder), read), str(folder))
    return folder, out.getvalue(), read


def test_every_field_is_read(made):
    assert made[2] == set(tiny_farm.flat(settings(made[0]))) - {"job"}


def test_files_say_what_the_run_came_to(made):
    folder, text, _ = made
    found = run_bandit(settings(folder))
    student_K = policies.bell_curve(12, 4.0, 9.0)
    for s in range(2):
        weights_K = student_K * np.exp(found.rewards.table_SK[s] / 0.1)
        np.testing.assert_allclose(found.policies["rlaif"][s], weights_K / weights_K.sum(), rtol=1e-4)
    said = json.loads((folder / "bandit.json").read_text())
    with (folder / "bandit.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name, policy_SK in found.policies.items():
        one = said["policies"][name]
        rewards = [sum(k * p for k, p in enumerate(policy_K)) for policy_K in policy_SK]
        assert one["mean_true_reward_of_seeds"] == pytest.approx(rewards)
        assert one["mean_true_reward"]["first"] == pytest.approx(rewards[0])
        assert one["mean_true_reward"]["mean"] == pytest.approx(sum(rewards) / 2)
        assert one["peak_probability"] == policy_SK[0, one["argmax_arm"]] == policy_SK[0].max()
        assert [float(row[name]) for row in rows] == policy_SK[0].tolist()
        assert f"{rewards[0]:.4f}" in text and f"{one['peak_probability']:.4f}" in text
    table_K = found.rewards.table_SK[0]
    assert [float(row["learned_reward"]) for row in rows] == table_K.tolist()
    assert said["reward_model"]["range"]["first"] == pytest.approx(float(table_K.max() - table_K.min()), 1e-6)
    last = float(found.rewards.losses_ST[0, -1])
    assert said["reward_model"]["loss_of_last_step"]["first"] == pytest.approx(last)
    assert f"final loss: {last:.4f}" in text and f"max - min = {np.ptp(table_K):.4f}" in text
    assert finding_text(found) in text and said["finding"]["says"] in text
    assert (folder / "plots/bandit.png").stat().st_size > 10_000


def test_the_page_is_whole_and_asks_for_nothing(made):
    page = (made[0] / "report.html").read_text()
    tags = Tags(page)
    assert not tags.open
    assert not re.search(r"https?://|<script|src=", page)
    assert "nan" not in re.sub(r"<style>.*</style>", "", page, flags=re.DOTALL).lower()
    lines = [attrs for tag, attrs in tags.seen if tag == "path" and "line" in attrs["class"].split()]
    assert len(lines) >= 6
    for one in lines[:6]:
        places = [float(x) for x in re.findall(r"[\d.]+", one["d"])]
        assert len(places) == 24 and max(places[::2]) <= 420 and max(places[1::2]) <= 250


def test_a_run_that_learns_nothing_is_drawn_too(tmp_path):
    """One seed, one pair that is a tie, one step: no interval, no reward, no curve of losses."""
    sharp = {"spread": 1e-3, "student.pairs": 1, "reward_model.steps": 1, "sft.steps": 1, "n_seeds": 1}
    with redirect_stdout(io.StringIO()) as out:
        bandit.run(settings(tmp_path, **sharp), str(tmp_path / "run"))
    assert "max - min = 0.0000" in out.getvalue() and "0.6931" in out.getvalue()
    assert "does not show: in 0 of 1 seeds" in out.getvalue()
    said = json.loads((tmp_path / "run/bandit.json").read_text())
    assert said["policies"]["sft"]["mean_true_reward"]["low"] is None
    assert "nan" not in re.sub(
        r"<style>.*</style>", "", (tmp_path / "run/report.html").read_text(), flags=re.DOTALL
    )


def test_intervals_are_students():
    # Of 1, 2, 3, 4: mean 2.5, standard error sqrt(5 / 12), t of 3 degrees of freedom 3.182446.
    first, over = over_seeds(np.array([4.0, 1.0, 3.0, 2.0]))
    assert first == 4 and over.mean == 2.5
    assert over.interval[1] - 2.5 == pytest.approx(3.182446 * math.sqrt(5 / 12), rel=1e-6)


WRONG = {
    "n_seeds": (0, 101),
    "arms": (1, 1001),
    "spread": (0.0, -1.0, math.nan),
    "teacher.peak": (-1.0,),
    "teacher.samples": (0, 10**7 + 1),
    "student.peak": (math.inf,),
    "student.pairs": (0, 1.5),
    "reward_model.steps": (0, 10**6 + 1),
    "reward_model.learning_rate": (0.0, -0.1),
    "sft.steps": (0,),
    "sft.learning_rate": (0.0, math.nan),
    "beta": (0.0, 1e-9),
}


@pytest.mark.parametrize("field", WRONG)
def test_what_cannot_be_right_is_refused(field, tmp_path):
    for value in WRONG[field]:
        page = settings(tmp_path)
        page.unlock()
        with page.ignore_type():
            page.update_from_flattened_dict({field: value})
        with pytest.raises(UserError, match=f"^{re.escape(f'{field}: {value!r}; use ')}"):
            bandit.run(page, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_peak_beyond_the_last_arm(role, tmp_path):
    page = settings(tmp_path, **{f"{role}.peak": 11.5})
    with pytest.raises(
        UserError, match=rf"^{role}\.peak: 11\.5; the last of 12 arms is 11; use at most that"
    ):
        bandit.run(page, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
