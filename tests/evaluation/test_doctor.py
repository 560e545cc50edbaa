"""Every finding on evidence that has it and on evidence that has not; and none on the curves of healthy runs."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from doctor_curves import logged, responses, rows

from rlhf_jax.evaluation.doctor import examine, examine_results, judge_rules, label_rules, trends
from rlhf_jax.evaluation.doctor.findings import NOTE, PROBLEM, SEVERITIES, WARNING, Finding, from_dict
from rlhf_jax.evaluation.report.curves import Series

HEALTHY = json.loads(Path(__file__).with_name("healthy_curves.json").read_text())
# True of these runs: their chosen responses are a fifth less likely at the end, and their models are better.
ALSO_HEALTHY = {"dpo": {"chosen log-probs fall"}, "kto": {"chosen log-probs fall"}}


def evaluated(*values, every=20):
    return every * np.arange(len(values)), values


def names(found):
    return {one.name for one in found}


def nested(settings):
    page = {}
    for name, value in settings.items():
        *groups, last = name.split(".")
        at = page
        for group in groups:
            at = at.setdefault(group, {})
        at[last] = value
    return page


def diagnose(curves, **settings):
    return examine.examine_run(rows(curves), nested({k.replace("__", "."): v for k, v in settings.items()}))


def healthy(name, seed):
    """A run of the embedded world's farm, its smooth shape with fresh noise of the size that it had."""
    curves = {}
    for i, (metric, shape) in enumerate(HEALTHY[name]["curves"].items()):
        if "values" in shape:
            curves[metric] = (shape["steps"], shape["values"])
            continue
        first, last, count = shape["steps"]
        steps = np.linspace(first, last, count).round()
        middles = first + (np.arange(len(shape["means"])) + 0.5) * (last - first) / len(shape["means"])
        drawn = np.random.default_rng([seed, i]).normal(size=count)
        curves[metric] = (steps, np.interp(steps, middles, shape["means"]) + shape["noise"] * drawn)
    for metric in ("completions/ended", "policy/clipfrac", "val/clipfrac", "groups/equal", "pairs/ties"):
        if metric in curves:
            curves[metric] = (curves[metric][0], np.clip(curves[metric][1], 0, 1))
    return rows(curves), nested(HEALTHY[name]["settings"])


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_runs_have_no_findings(name):
    for seed in range(20):
        run, config = healthy(name, seed)
        assert names(examine.examine_run(run, config)) == ALSO_HEALTHY.get(name, set()), seed
        # Nor on the way: a run is looked at from its first evaluation on.
        for part in (0.15, 0.3, 0.45, 0.6, 0.8):
            so_far = [row for row in run if row["step"] <= part * run[-1]["step"]]
            assert names(examine.examine_run(so_far, config)) <= ALSO_HEALTHY.get(name, set()), (seed, part)
    assert examine.looked_for(healthy(name, 0)[0])


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_noise_does_not_move(correlation):
    moved = 0
    for seed in range(200):
        noise = np.random.default_rng(seed).normal(size=200)
        for i in range(1, len(noise)):
            noise[i] += correlation * noise[i - 1]
        moved += trends.change_of(Series("loss", np.arange(200.0), noise, 0)).sure
    # Of 200; white noise hardly ever, and what drifts for ten steps and comes back not often.
    assert moved <= (2 if correlation == 0 else 20)


def test_a_change_is_that_of_the_ends():
    steps, values = logged(np.linspace(1, 3, 100), noise=0.3)
    found = trends.change_of(Series("loss", steps, values, 0))
    assert found.sure and found.difference == pytest.approx(1.64, abs=0.2)
    assert (found.first_step, found.last_step) == (1, 100)
    few = trends.change_of(Series("loss", steps[:8], values[:8], 0))
    assert few is None and trends.change_of(Series("eval/loss", steps[:2], values[:2], 0)) is None
    # What only the last evaluation says is not yet so.
    once = trends.change_of(Series("eval/loss", np.arange(4.0), np.array([1.0, 1.1, 1.0, 9.0]), 0))
    assert once.end == 1.0


def test_a_share_has_wilsons_interval():
    # 81 of 263: Newcombe 1998, table I, gives [.2553, .3662] for the score interval.
    low, high = trends.share_interval(81 / 263, 263)
    assert (low, high) == (pytest.approx(25.53, abs=0.01), pytest.approx(36.62, abs=0.01))


def dpo_on_three(other, steps=200, rate=0.5, beta=1.0):
    """DPO by gradient descent on a softmax over three responses, chosen, rejected and another, linear in features.

    other: the features of the third one. Chosen and rejected are nearly alike, so what tells them apart raises the
    other one when that has it, too (Razin et al. 2024). Returns log-probs [steps, 3].
    """
    features = np.array([[1.0, 0.2], [1.0, 0.0], other])
    weights, start, found = np.array([1.0, 0.0]), None, []
    for _ in range(steps):
        logits = features @ weights
        logps = logits - np.log(np.exp(logits).sum())
        start = logps if start is None else start
        found.append(logps)
        margin = beta * ((logps - start)[0] - (logps - start)[1])
        # The normaliser cancels between the two, so the gradient is the difference of their features.
        weights = weights + rate * beta * (features[0] - features[1]) / (1 + math.exp(margin))
    return np.array(found)


@pytest.mark.parametrize(("other", "falls"), [((0.0, 4.0), True), ((0.0, -4.0), False)])
def test_chosen_logprobs_fall(other, falls):
    logps = dpo_on_three(other)
    rewards = logps - logps[0]
    curves = {"eval/logps/chosen": (range(0, 200, 40), logps[::40, 0]), "logps/chosen": logged(logps[:, 0])}
    for i, side in enumerate(("chosen", "rejected")):
        curves[f"rewards/{side}"] = logged(rewards[:, i], noise=0.02)
        curves[f"eval/rewards/{side}"] = (range(0, 200, 40), rewards[::40, i])
    found = diagnose(curves, beta=1.0, loss="sigmoid", sft_coef=0.0)
    assert (rewards[-1, 0] > rewards[-1, 1]) and (rewards[-1, 0] < -1) == falls
    assert names(found) == ({"chosen log-probs fall"} if falls else set())
    if falls:
        assert found[0].severity == WARNING and found[0].setting == "sft_coef=0.0, beta=1.0"
        assert (
            f"{logps[0, 0]:.3g} to {np.mean(logps[[120, 160], 0]):.3g} nats (step 160)" in found[0].evidence
        )
    # Without the page the log-probs tell it, as far as they moved since they were first evaluated.
    assert names(examine.examine_run(rows(curves))) == names(found)


def test_chosen_logprobs_of_losses_without_a_reference():
    falling = {
        "eval/logps/chosen": evaluated(-20, -24, -27, -28),
        "eval/logps/rejected": evaluated(-21, -26, -31, -33),
    }
    sides = {
        "eval/rewards/chosen": evaluated(-2, -2.4, -2.7, -2.8),
        "eval/rewards/rejected": evaluated(-2.1, -3, -4, -5),
    }
    found = diagnose(falling | sides, beta=2.0, loss="simpo")
    assert [one.severity for one in found] == [NOTE] and "-20 to -27 nats" in found[0].evidence
    # Where both fall alike, what they fall for is not the difference.
    alike = {"eval/rewards/rejected": evaluated(-2, -2.3, -2.6, -2.7)}
    assert [one.severity for one in diagnose(falling | sides | alike, beta=2.0, loss="simpo")] == [WARNING]


def test_length_drifts():
    assert names(diagnose(responses(np.linspace(40, 46, 80)))) == set()
    longer = diagnose(responses(np.linspace(40, 60, 80)))
    assert names(longer) == {"length drifts"} and longer[0].severity == WARNING
    # AlpacaFarm's PPO: 396 to 803 characters; the page that evaluates says it as soon as it is sure.
    doubled = diagnose({"eval/completions/mean_length": evaluated(396, 640, 790, 803)})
    assert [(one.name, one.severity) for one in doubled] == [("length drifts", WARNING)]
    assert diagnose({"eval/completions/mean_length": evaluated(396, 700, 800, 803)})[0].severity == PROBLEM
    assert diagnose({"eval/completions/mean_length": evaluated(396, 400, 803)}) == []
    assert names(diagnose(responses(np.linspace(40, 20, 80)))) == {"length drifts"}
    # An evaluation of a handful of prompts, which the rollouts know better.
    handful = {"eval/completions/mean_length": evaluated(7.4, 5.8, 5.6, 5.6)}
    assert names(diagnose(handful)) == {"length drifts"} and not diagnose(
        responses(np.linspace(40, 44, 80)) | handful
    )


def test_responses_do_not_end():
    assert diagnose(responses(40, 0.97)) == []
    page = {"rollout__max_new_tokens": 64, "missing_eos_penalty": -1.0}
    found = diagnose(responses(40, np.linspace(1, 0.2, 80)), **page)
    assert [(one.name, one.severity) for one in found] == [("responses do not end", PROBLEM)]
    assert (
        "within 64 tokens, after 9" in found[0].evidence and "rollout.max_new_tokens=64" in found[0].setting
    )
    assert [one.severity for one in diagnose(responses(40, 0.8))] == [WARNING]
    # Distillation, whose page has no penalty, learns from a part of a response as well.
    assert [one.severity for one in diagnose(responses(40, 0.1), rollout__max_new_tokens=64)] == [NOTE]


def test_entropy_collapses():
    """Of a softmax whose logits grow: a bandit that is pulled to its best arm without anything that holds it."""

    def entropy(scale):
        p = np.exp(np.outer(scale, np.arange(8) / 8))
        p /= p.sum(1, keepdims=True)
        return -(p * np.log(p)).sum(1)

    assert diagnose({"objective/entropy": logged(entropy(np.linspace(0, 12, 80)), noise=0.02)}) == []
    found = diagnose({"objective/entropy": logged(entropy(np.linspace(0, 60, 80)), noise=0.005)}, kl_coef=0.0)
    assert names(found) == {"entropy collapses"} and found[0].setting == "kl_coef=0.0"
    # SFT's falls from that of an untrained model to that of language, and no rollout logs it.
    assert (
        diagnose({"entropy": logged(np.linspace(6, 0.5, 80)), "eval/entropy": evaluated(6, 2, 1, 0.5)}) == []
    )


def test_kl_without_reward():
    walk = np.linspace(0, 1, 80)
    kl = logged(30 * walk**2, noise=0.5)
    assert diagnose({"objective/kl": kl, "objective/scores": logged(walk**0.5, noise=0.1)}) == []
    spread = {"objective/scores_std": logged(np.full(80, 1.0), noise=0.02)}
    flat = diagnose({"objective/kl": kl, "objective/scores": logged(0 * walk, noise=0.1)} | spread)
    assert [(one.name, one.severity) for one in flat] == [("KL without reward", WARNING)]
    # The reward has come to its end in the first half, and the policy walks on.
    stalls = {"objective/kl": kl, "objective/scores": logged(np.minimum(4 * walk, 1), noise=0.1)}
    stalled = diagnose(stalls | spread)
    assert names(stalled) == {"KL without reward"} and "(step 41)" in stalled[0].evidence
    falls = diagnose({"objective/kl": kl, "objective/scores": logged(-2 * walk, noise=0.1)})
    assert falls[0].severity == PROBLEM


def test_kl_explodes():
    assert diagnose(responses(50, **{"objective/kl": logged(np.linspace(0, 30, 80), noise=2)})) == []
    scores = {"objective/scores": logged(np.linspace(0, 5, 80), noise=0.1)}
    found = diagnose(responses(50, **{"objective/kl": logged(np.linspace(0, 120, 80), noise=2), **scores}))
    assert names(found) == {"KL explodes"} and "nats a token" in found[0].evidence


def test_kl_below_zero():
    """Of samples by temperature 0.5 that are scored at 1: log pi - log ref is then that of other responses."""
    rng, logits = np.random.default_rng(0), np.array([2.0, 1.0, 0.0, -1.0])
    policy, reference = (x - np.log(np.exp(x).sum()) for x in (logits * 0.6, logits))
    found = {}
    for temperature in (1.0, 0.5):
        p = np.exp(policy / temperature) / np.exp(policy / temperature).sum()
        drawn = rng.choice(4, p=p, size=(40, 64, 20))  # rollouts, responses, tokens
        kl = (policy - reference)[drawn].sum(2).mean(1)
        found[temperature] = names(diagnose({"objective/kl": logged(kl)}, rollout__temperature=temperature))
    assert found == {1.0: set(), 0.5: {"KL below zero"}}


def test_reward_up_worth_down():
    """AlpacaFarm's figure 4, PPO: .367 -> .466 -> .43 by the noisy pool, .443 -> .551 -> .510 by people."""
    scores = {"eval/scores": evaluated(0, 0.2, 0.4, 0.6, 0.8, 1.0)}
    hump = {"eval/win_rate": evaluated(0.443, 0.52, 0.551, 0.545, 0.512, 0.508)}
    found = diagnose(scores | hump, data__eval_rows=805)
    assert [(one.name, one.severity) for one in found] == [("reward up, worth down", PROBLEM)]
    assert "eval/win_rate 0.548 (to step 60) to 0.510 (to step 100)" in found[0].evidence
    # Of a hundred prompts such a fall is chance; and a reward that falls, too, tells the truth.
    assert diagnose(scores | hump, data__eval_rows=100) == []
    honest = {"eval/scores": evaluated(0, 0.4, 0.8, 0.8, 0.5, 0.3)}
    assert diagnose(honest | hump, data__eval_rows=805) == []
    rises = {"eval/win_rate": evaluated(0.443, 0.52, 0.551, 0.545, 0.56, 0.555)}
    assert diagnose(scores | rises, data__eval_rows=805) == []
    utility = {"eval/utility": evaluated(0.751, 0.8, 0.846, 0.8, 0.7, 0.647)}
    assert names(diagnose(scores | utility)) == {"reward up, worth down"}


def test_rewards_without_variance():
    assert diagnose({"groups/equal": logged(np.full(40, 0.2), noise=0.05)}) == []
    half = diagnose({"groups/equal": logged(np.linspace(0, 0.8, 40))}, rollout__samples=4)
    assert [(one.name, one.severity) for one in half] == [("rewards without variance", WARNING)]
    assert half[0].setting == "rollout.samples=4"
    assert diagnose({"pairs/ties": logged(np.full(40, 0.95))})[0].severity == PROBLEM
    spread = {"objective/scores_std": logged(np.linspace(0.24, 0.2, 40), noise=0.02)}
    assert diagnose(spread) == []
    # No response ends any more, so each gets the penalty.
    gone = responses(
        40,
        np.linspace(1, -0.8, 80),
        **{"objective/scores_std": logged(np.r_[np.full(40, 1.0), np.zeros(40)])},
    )
    assert {"rewards without variance", "responses do not end"} <= names(diagnose(gone))


def test_updates_are_clipped():
    assert diagnose({"policy/clipfrac": logged(np.full(40, 0.1), noise=0.03)}) == []
    # One bad rollout is none: a median.
    assert diagnose({"policy/clipfrac": logged(np.r_[np.full(38, 0.05), 0.9, 0.05])}) == []
    found = diagnose({"policy/clipfrac": logged(np.full(40, 0.35), noise=0.03)}, epochs=8, clip=0.2)
    assert [(one.name, one.severity) for one in found] == [("updates are clipped", WARNING)]
    assert found[0].setting == "epochs=8, clip=0.2" and "35% of tokens" in found[0].evidence
    # GSPO's range is that of a sequence; its paper clips a hundred times as often as GRPO.
    assert diagnose({"policy/clipfrac": logged(np.full(40, 0.35))}, ratio="sequence") == []
    values = {"policy/clipfrac": logged(np.zeros(40)), "val/clipfrac": logged(np.full(40, 0.7))}
    assert "value_clip" in diagnose(values)[0].evidence


def test_sampler_and_trainer_apart():
    def apart(nats, **settings):
        found = diagnose({"sampling/logp_difference": logged(np.full(20, nats), noise=nats / 10)}, **settings)
        return [(one.name, one.severity) for one in found]

    assert apart(4e-7) == [] == apart(0.02, rollout__dtype="bfloat16")
    # NeMo-RL's alarm: exp(x) above 1.05.
    assert apart(0.08, rollout__dtype="bfloat16") == [("sampler and trainer apart", WARNING)]
    assert apart(0.3) == [("sampler and trainer apart", PROBLEM)]
    assert apart(0.3, rollout__staleness=2, rollout__correction="token") == [
        ("sampler and trainer apart", NOTE)
    ]


def test_a_reward_model_no_better_than_longer_wins():
    def trained(accuracy, longer, pairs=300):
        curves = {
            "eval/rewards/accuracies": evaluated(0.5, *[accuracy] * 3),
            "eval/longer_wins": evaluated(*[longer] * 4),
        }
        return [(one.name, one.severity) for one in diagnose(curves, data__eval_rows=pairs)]

    name = 'reward model no better than "longer wins"'
    assert trained(0.7, 0.55) == [] == trained(0.7, 0.3)
    assert trained(0.64, 0.66) == [(name, WARNING)] == trained(0.66, 0.65)
    assert trained(0.51, 0.55) == [(name, PROBLEM)]
    rising = {
        "eval/rewards/accuracies": evaluated(0.5, 0.52, 0.56),
        "eval/longer_wins": evaluated(0.6, 0.6, 0.6),
    }
    assert diagnose(rising, data__eval_rows=300) == []
    # Of a dozen pairs nothing can be said.
    assert trained(0.5, 0.6, pairs=12) == []


def test_held_out_loss_rises():
    falls = {"loss": logged(np.linspace(0.7, 0.2, 80), noise=0.05)}
    assert diagnose(falls | {"eval/loss": evaluated(0.7, 0.5, 0.45, 0.4495, 0.4505)}) == []
    # A fiftieth of what it fell by is nothing, and so is what the last evaluation alone says.
    assert diagnose(falls | {"eval/loss": evaluated(0.7, 0.5, 0.45, 0.455, 0.456)}) == []
    assert diagnose(falls | {"eval/loss": evaluated(0.7, 0.5, 0.45, 0.449, 0.6)}) == []
    assert [
        one.severity for one in diagnose(falls | {"eval/loss": evaluated(0.7, 0.5, 0.45, 0.48, 0.49)})
    ] == [NOTE]
    found = diagnose(falls | {"eval/loss": evaluated(0.7, 0.6, 0.62, 0.7, 0.9)}, epochs=8.0)
    assert [(one.name, one.severity, one.setting) for one in found] == [
        ("held-out loss rises", WARNING, "epochs=8.0")
    ]


def test_a_resumed_run_is_read_as_it_went_on():
    steps, values = logged(np.linspace(40, 80, 80), noise=0.5)
    whole = rows({"completions/mean_length": (steps, values)})
    # Killed at step 60, where lengths had gone wild, and done again from step 40 on.
    wild = [{"step": float(s), "completions/mean_length": 500.0} for s in range(41, 61)]
    resumed = whole[:40] + wild + whole[40:]
    assert examine.examine_run(resumed) == examine.examine_run(whole) != []


def test_what_is_not_logged_is_not_looked_for():
    assert examine.examine_run([]) == [] == examine.looked_for([])
    assert examine.examine_run([{"step": 1, "loss": None}, {"step": 2, "loss": "nan"}, {"loss": 1.0}]) == []
    assert examine.looked_for([{"step": 1, "completions/ended": 1.0}]) == ["responses do not end"]
    every = [{"step": 1, **dict.fromkeys(examine.WATCHED, 0.5)}]
    assert examine.looked_for(every) == [rule.name for rule in examine.RUN_RULES]
    for config in ({}, {"beta": None, "loss": 3}, {"rollout": 1}):
        assert examine.examine_run(every * 3, config) == []


def test_the_worst_comes_first_and_survives_a_file():
    curves = responses(np.linspace(40, 60, 80), np.linspace(1, 0.2, 80))
    found = diagnose(curves, kl_coef=0.1)
    assert [one.severity for one in found] == sorted((one.severity for one in found), key=SEVERITIES.index)
    assert [from_dict(json.loads(json.dumps(one.as_dict()))) for one in found] == found
    assert found[0].line().startswith("finding (problem): responses do not end: ")
    assert examine_results.about(found[0], "ppo").line().startswith("finding (problem): ppo: responses")


# Judges, labels, reward models and leaderboards.


def test_every_rule_stands_in_the_document():
    text = (Path(__file__).parents[2] / "docs/doctor.md").read_text()
    rules = (*examine.RUN_RULES, *judge_rules.JUDGE_RULES, *judge_rules.BOARD_RULES, *label_rules.LABEL_RULES)
    for rule in rules:
        line = next(line for line in text.splitlines() if line.startswith(f"| {rule.name} |"))
        for part in (rule.means, rule.cause, f"`{rule.settings[0]}`"):
            assert part in line, (rule.name, part)
    assert len({rule.name for rule in rules}) == len(rules)
    assert isinstance(Finding("n", NOTE, "e", (), "c", "s").line(), str)
