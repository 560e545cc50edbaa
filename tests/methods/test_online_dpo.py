"""Online DPO as every method is tested, which pairs it makes of scores, and two iterations by hand."""

import json
import sqlite3

import jax
import jax.numpy as jnp
import numpy as np
import observed
import pytest
import recorded_rollouts
import tiny_farm
import tiny_losses
from method_suite import MethodSuite
from same_runs import assert_same_state
from tiny_losses import CONFIG, B, Case

from rlhf_jax.errors import UserError
from rlhf_jax.methods import online_dpo
from rlhf_jax.models.huggingface import import_folder
from rlhf_jax.rollout.experience import Readings, RolloutSettings
from rlhf_jax.rollout.rewards import Scored
from rlhf_jax.sampling.decode import Generation


class TestOnlineDpo(MethodSuite):
    job = "online_dpo"
    steps = {"steps": 13}

    def case(self):
        cases = tiny_losses.cases()
        pairs = cases["dpo"].batch
        return Case(
            lambda R: online_dpo.online_dpo_loss_fn(
                CONFIG, R, 16, temperature=0.7, beta=0.1, label_smoothing=0.1, loss="sigmoid"
            ),
            {"policy": cases["dpo"].params},
            pairs,
        )


def pairs_of(scores, readable=None, ended=None, tokens=None):
    """`make_pairs` of two prompts with three responses each; token i of response i is i unless `tokens` says."""
    n = 6
    tokens = jnp.asarray(tokens if tokens is not None else np.arange(n), jnp.int32)[:, None]
    yes = np.ones(n, bool)
    ended, readable = (jnp.asarray(yes if x is None else x) for x in (ended, readable))
    lengths, numbers = jnp.ones(n, jnp.int32), jnp.arange(n, dtype=jnp.float32)
    sampled = Generation(tokens, -jnp.ones((n, 1)), jnp.ones((n, 1), bool), lengths, ended, jnp.int32(1))
    both = {"policy": -jnp.ones((n, 1)), "reference": -numbers[:, None]}
    read = Readings(tokens, 0 * lengths, sampled.mask_BR, both, jnp.zeros((n, 1)), {})
    scored = Scored(jnp.asarray(scores, jnp.float32), readable)
    return online_dpo.make_pairs(read, sampled, scored, RolloutSettings(1.0, "k1", -3.0, 8), 3)


def test_the_best_and_the_worst_are_a_pair():
    pairs, metrics = pairs_of([1, 3, 2, -1, -2, 5])
    assert pairs["chosen_tokens"][:, 0].tolist() == [1, 5] and pairs["rejected_tokens"][:, 0].tolist() == [
        0,
        4,
    ]
    # The reference's log-probs are those of the same responses.
    assert pairs["ref_chosen"].tolist() == [-1, -5] and pairs["ref_rejected"].tolist() == [0, -4]
    assert pairs["weight"].tolist() == [1, 1] and metrics["pairs/ties"] == metrics["pairs/unscored"] == 0
    assert metrics["objective/scores_chosen"] == 4 and metrics["objective/scores_rejected"] == -0.5


def test_ties_are_no_pair_and_are_counted():
    pairs, metrics = pairs_of([2, 2, 2, 0, 1, 1])
    assert pairs["weight"].tolist() == [0, 1] and metrics["pairs/ties"] == 0.5
    # The first of equal ones; a score of 0 is a score.
    assert pairs["chosen_tokens"][1].tolist() == [4] and pairs["rejected_tokens"][1].tolist() == [3]
    same, metrics = pairs_of([1, 1.001, 1, 0, 1, 2], tokens=[7, 7, 7, 3, 4, 5])
    assert same["weight"].tolist() == [0, 1] and metrics["pairs/ties"] == 0.5


def test_a_response_without_end_is_bad_and_one_without_score_says_nothing():
    ended = [True, True, False, True, True, True]
    readable = [True, True, True, False, False, True]
    pairs, metrics = pairs_of([-9, -1, 9, 0, 0, 1], readable, ended)
    # -3 for the one that did not end; of the second prompt's only one has a score.
    assert pairs["chosen_tokens"][0].tolist() == [1] and pairs["rejected_tokens"][0].tolist() == [0]
    assert pairs["weight"].tolist() == [1, 0]
    assert metrics["pairs/unscored"] == 0.5 and metrics["pairs/ties"] == 0
    # Nobody could score what did not end, either: it is still the worst.
    pairs, _ = pairs_of([1, 2, 0, 1, 2, 3], [True, True, False, True, True, True], ended)
    assert pairs["rejected_tokens"][0].tolist() == [2] and pairs["chosen_tokens"][0].tolist() == [1]
    pairs, _ = pairs_of([1, 2, 0, 1, 2, 3], [True, True, False, True, True, True])
    assert pairs["rejected_tokens"][0].tolist() == [0] and pairs["chosen_tokens"][0].tolist() == [1]


def test_a_minibatch_without_pairs_has_no_loss_and_no_gradient():
    case = TestOnlineDpo().case()
    empty = jax.tree.map(jnp.asarray, case.batch | {"weight": np.zeros(B, np.float32)})
    params = jax.tree.map(jnp.asarray, case.params)
    loss_fn = case.make(tiny_losses.R)
    total, gradient = jax.value_and_grad(lambda params: loss_fn(params, empty)["loss"].sum)(params)
    assert total == 0 and recorded_rollouts.norm(gradient) == 0


CLEAN = str(tiny_farm.ROOT / "configs/judges/micro_clean.yaml")


def test_a_judge_that_compares_is_asked_again_for_nothing_after_a_stop(farm, tmp_path, capsys):
    """Its answers are kept: a run that goes on has the same pairs, and pays for none twice. A response alone, as
    evaluations have it, has no score, and none is reported.
    """
    judged = {"reward.sources": f"judge={CLEAN}", "rollout.samples": 2, "best_metric": ""}
    page = tiny_farm.settings("online_dpo", farm, **judged | {"steps": 4, "save_every": 2, "eval_every": 0})
    whole, continued = tmp_path / "whole", tmp_path / "continued"
    observed.run("online_dpo", page, whole)
    observed.run("online_dpo", page, continued, stop_before=3)
    observed.run("online_dpo", page, continued)
    assert_same_state(continued, whole)
    found = [row for row in tiny_farm.rows(whole) if "loss" in row]
    assert all(row["objective/scores_chosen"] > row["objective/scores_rejected"] for row in found)
    assert len(found) == 4 and all(row["rewards/judge"] == 0 for row in found)  # one's +1 is the other's -1
    answers = [
        sqlite3.connect(next(x.glob("*.sqlite"))).execute("select count(*) from answers").fetchone()
        for x in (whole, continued)
    ]
    assert answers[0] == answers[1]
    evaluations = [row for row in tiny_farm.rows(whole) if "eval/kl" in row]
    unsaid = {
        "eval/scores",
        "eval/scores_std",
        "eval/raw_scores",
        "eval/rewards/judge",
        "eval/completions/unscored",
    }
    assert len(evaluations) == 2 and not any(unsaid & set(row) for row in evaluations)
    assert json.loads((whole / "samples/000004.jsonl").read_text().splitlines()[0])["score"] is None
    said = f"notice: reward.sources: {CLEAN} compares responses to one prompt, of which an evaluation samples one, so "
    assert said + "there is no eval/scores; win_rate.judges measures evaluations" in capsys.readouterr().out
    with pytest.raises(
        UserError, match=r"^best_metric: eval/scores, but .* samples one; use eval/win_rate with"
    ):
        page.best_metric = "eval/scores"
        online_dpo.run(page, str(tmp_path / "best"))


SETTINGS = recorded_rollouts.PLAIN | {
    "steps": 2,
    "epochs": 2,
    "minibatch_size": 8,
    "rollout.samples": 3,
    "rollout.temperature": 0.8,
    "loss": "ipo_sum",
    "beta": 0.2,
    "missing_eos_penalty": -0.1,
    "optimizer.learning_rate": 2e-3,
}


def test_two_iterations_by_hand(farm, tmp_path):
    """Pairs from the recorded scores, IPO's loss by its formula, descent; the reference stays where it was."""
    page = tiny_farm.settings("online_dpo", farm, **SETTINGS)
    rollouts, rows, _, exported = recorded_rollouts.run(online_dpo, page, tmp_path)
    assert len(rollouts) == len(rows) == 2
    config = import_folder.describe_folder(farm / "sft/export").config
    start = params = jax.tree.map(np.float32, import_folder.load(farm / "sft/export")[1])
    for rollout, row in zip(rollouts, rows, strict=True):
        scores = np.where(rollout.ended_B, rollout.scores_B, -0.1).reshape(-1, 3)
        first = np.arange(len(scores)) * 3
        best, worst = first + scores.argmax(1), first + scores.argmin(1)
        weight = np.float64(scores.max(1) > scores.min(1))
        weight *= (rollout.tokens_BT[best] != rollout.tokens_BT[worst]).any(1)
        reference = recorded_rollouts.logprobs(config, start, rollout, 0.8).sum(1)

        def loss(params, rollout=rollout, best=best, worst=worst, weight=weight, reference=reference):
            ratio = recorded_rollouts.logprobs(config, params, rollout, 0.8).sum(1) - reference
            gap = ratio[best] - ratio[worst]
            return ((gap - 1 / 0.4) ** 2 * weight).sum() / weight.sum(), (gap * weight).sum() / weight.sum()

        now = recorded_rollouts.logprobs(config, params, rollout, 0.8)
        kl = float((now.sum(1) - reference).mean())
        losses, margins, norms = [], [], []
        for _ in range(2):
            (found, gap), gradient = jax.value_and_grad(loss, has_aux=True)(params)
            losses.append(found), margins.append(0.2 * gap), norms.append(recorded_rollouts.norm(gradient))
            params = recorded_rollouts.descended(params, gradient, 2e-3)
        wanted = {
            "loss": np.mean(losses),
            "rewards/margins": np.mean(margins),
            "grad_norm": np.mean(norms),
            "objective/kl": kl,
            "objective/scores": scores.mean(),
            "objective/scores_chosen": (scores.max(1) * weight).sum() / weight.sum(),
            "pairs/ties": 1 - weight.mean(),
        }
        assert {name: row[name] for name in wanted} == pytest.approx(wanted, rel=2e-3, abs=2e-4)
    recorded_rollouts.assert_params(exported, params, start)
