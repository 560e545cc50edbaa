"""Training prefers the side it should: it starts from a model that prefers the other one, and ten steps turn that.

What a model prefers is found here, with words encoded by hand and a full softmax, and not asked of the method.
"""

import itertools

import numpy as np
import pytest
import tiny_words
from tiny_words import EOS, REWARD_MEAN, VOCABULARY, WORDS, Row, encoded

from rlhf_jax.methods import dpo, kto, ppo, reward_model

TEN_STEPS = {
    "batch_size": 8,
    "epochs": 10.0,
    "save_every": 0,
    "eval_every": 0,
    "optimizer.schedule": "constant",
}


def against(prefers):
    """Eight pairs labelled against a model's own preference; prefers: its number of a row, larger is better."""
    prompts, *answers = (tiny_words.sentences(8, 4, seed) for seed in (20, 21, 22))
    rows = []
    for i, (prompt, *both) in enumerate(zip(prompts, *answers, strict=True)):
        worse, better = sorted(both, key=lambda x: prefers(encoded(prompt, x)))
        # The preferred output stands first in one half of the rows and second in the other.
        one, two = (worse, better) if i % 2 else (better, worse)
        rows.append({"prompt": prompt, "output_1": one, "output_2": two, "preference": 1 if i % 2 else 2})
    return rows


def margins(rows, prefers):
    """By how much each row's preferred output is ahead."""
    sides = [("output_1", "output_2")[:: 1 if row["preference"] == 1 else -1] for row in rows]
    return [
        np.subtract(*(prefers(encoded(row["prompt"], row[x])) for x in side))
        for row, side in zip(rows, sides, strict=True)
    ]


# The losses of a policy that differ in what they read: whole responses or tokens, a reference or none.
VARIED = {
    "dpo": {},
    "sigmoid_mean": {"beta": 2.0},
    "ipo_sum": {"beta": 0.1},
    "hinge": {"reference": "none", "importance": "wpo", "beta": 0.5, "optimizer.learning_rate": 0.2},
    "simpo": {"beta": 2.0, "simpo_gamma": 1.0},
    "orpo": {"beta": 1.0},
    "kto": {},
}


@pytest.mark.parametrize("job", [*VARIED, "reward_model"])
def test_the_preferred_side_comes_to_be_ahead(words, tmp_path, job):
    start = words / ("reward" if job == "reward_model" else "language")
    measure = tiny_words.score if job == "reward_model" else tiny_words.logprob
    if job in ("sigmoid_mean", "simpo", "orpo"):
        # These prefer what is likelier by token, which a longer response may be at a lower sum.
        measure = lambda params, row: tiny_words.logprob(params, row) / len(row.response)  # noqa: E731
    before = tiny_words.load(start)
    rows = against(lambda row: measure(before, row))
    assert max(margins(rows, lambda row: measure(before, row))) < 0
    own = {"reference_cache": str(tmp_path / "cache")} if job in VARIED else {"center_on": ""}
    own |= {"loss": job} if job not in ("dpo", "kto", "reward_model") else {}
    method = {"reward_model": reward_model, "kto": kto}.get(job, dpo)
    page = tiny_words.settings(
        method.__name__.rpartition(".")[2],
        tmp_path,
        {"data.train": rows, "data.eval": rows},
        **{"model.init": str(start)},
        **{"optimizer.learning_rate": 0.1} | TEN_STEPS | own | VARIED.get(job, {}),
    )
    method.run(page, str(tmp_path / "run"))
    after = tiny_words.load(tmp_path / "run/export")
    found = margins(rows, lambda row: measure(after, row))
    assert np.mean(np.array(found) > 0) >= 0.75 and np.mean(found) > 0.5, found
    last = tiny_words.tiny_farm.rows(tmp_path / "run")[-1]
    assert last["eval/rewards/accuracies"] >= 0.75
    assert last["eval/rewards/chosen"] > last["eval/rewards/rejected"]


def test_a_policy_comes_to_be_worth_more(words, tmp_path):
    """The mean reward over all responses that there can be, each with its probability; nothing is sampled for it."""
    policy, reward = tiny_words.load(words / "language"), tiny_words.load(words / "reward")
    prompts = tiny_words.sentences(4, 3, 30)
    penalty = -1.0

    def worth(params):
        return np.mean([worth_of(params, reward, prompt, penalty) for prompt in prompts])

    page = tiny_words.settings(
        "ppo",
        tmp_path,
        {"data.train": [{"prompt": x} for x in prompts], "data.eval": [{"prompt": x} for x in prompts]},
        **{"model.policy": str(words / "language"), "model.reward": str(words / "reward")},
        **{
            "rollout.batch_size": 64,
            "minibatch_size": 64,
            "rollout.max_new_tokens": 2,
            "steps": 10,
            "epochs": 2,
        },
        **{"optimizer.learning_rate": 0.05, "value_learning_rate": 0.05, "optimizer.schedule": "constant"},
        **{
            "kl_coef": 0.01,
            "missing_eos_penalty": penalty,
            "best_metric": "",
            "eval_every": 0,
            "save_every": 0,
        },
    )
    ppo.run(page, str(tmp_path / "run"))
    before, after = worth(policy), worth(tiny_words.load(tmp_path / "run/export"))
    assert before < 0 < after, (before, after)
    # And it is measured so: held-out samples score what the responses are worth, but for chance.
    evaluations = [
        x["eval/scores"] for x in tiny_words.tiny_farm.rows(tmp_path / "run") if "eval/scores" in x
    ]
    assert evaluations[0] < evaluations[-1]


def worth_of(params, reward, prompt, penalty):
    """Of a prompt's responses of at most two tokens: nothing, or one word, and the end; or two tokens without one."""
    ended, probability = [], 0.0
    for words in ((), *itertools.product([x for x in VOCABULARY if x != EOS])):
        row = Row(encoded(prompt, "").prompt, [VOCABULARY[x] for x in (*words, EOS)])
        p = np.exp(tiny_words.logprob(params, row))
        ended.append(p * (tiny_words.score(reward, row) - REWARD_MEAN))
        probability += p
    assert len(WORDS) < len(ended) and 0 < probability < 1
    return sum(ended) + (1 - probability) * penalty
