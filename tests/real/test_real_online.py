"""Every method that learns from its own samples, on a real chat model: a few rollouts, each with its aim.

The policy starts as the model that was tuned on short answers: in the few tokens that are sampled it comes to an end,
and only a response that did has a score. The prompts of the evaluation are those of training, with the same noise.
"""

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("gguf", reason="the package gguf is not installed")

from real_runs import ADAPTER, MARKS, NEW, run, series, train  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

torch.set_num_threads(1)  # The cores are busy; threads that wait for each other crawl.
pytestmark = MARKS
STEPS = 2


def sampled(work, **changes):
    """The settings of a run on the prompts, which are all in every rollout."""
    found = ADAPTER | {"data.train": work / "prompts.jsonl", "data.eval": work / "prompts.jsonl"}
    found |= {
        "model.policy": work / "sft" / "export",
        "data.max_prompt_length": 64,
        "data.eval_rows": 8,
        "best_metric": "",
    }
    found |= {"rollout.batch_size": 8, "rollout.max_new_tokens": NEW, "steps": STEPS, "eval_every": STEPS}
    return found | {"save_every": STEPS} | changes


def scored(work, **changes):
    """The same, scored by the reward model."""
    reward = {"model.reward": work / "reward_model" / "export", "missing_eos_penalty": -3.0}
    return sampled(work) | reward | changes


def rises(rows, name):
    """The metric is higher at the end, and it is of responses that ended."""
    assert series(rows, "completions/ended").max() > 0, "none ended: raise rollout.max_new_tokens"
    assert series(rows, name)[-1] > series(rows, name)[0], series(rows, name)


def test_online_dpo_raises_the_score(work, sft, reward_model, tmp_path):
    # At the rate of the other tests its responses no longer end.
    changes = {"rollout.samples": 2, "minibatch_size": 4, "epochs": 3, "optimizer.learning_rate": 2e-4}
    found = train("online_dpo", tmp_path / "online_dpo", scored(work, **changes))
    rises(found, "eval/scores")
    assert series(found, "eval/kl")[-1] > 0.1


def test_distillation_comes_closer_to_the_teacher(model, work, sft, tmp_path):
    changes = {
        "model.policy": model,
        "model.teacher": work / "sft" / "export",
        "minibatch_size": 4,
        "epochs": 2,
    }
    found = train("distillation", tmp_path / "distillation", sampled(work, **changes))
    rises(found, "eval/scores")
    assert series(found, "divergence")[-1] < 0.8 * series(found, "divergence")[0]


def test_grpo_raises_the_score(work, sft, reward_model, tmp_path):
    changes = {"rollout.samples": 4, "minibatch_size": 8, "epochs": 1}
    found = train("grpo", tmp_path / "grpo", scored(work, **changes))
    rises(found, "eval/scores")
    assert series(found, "eval/kl")[-1] > 0.1


def test_quark_raises_the_score(work, sft, reward_model, tmp_path):
    changes = {"rollout.batch_size": 32, "minibatch_size": 4, "updates": 4, "pool_rollouts": 2}
    found = train("quark", tmp_path / "quark", scored(work, **changes))
    rises(found, "eval/scores")
    assert (series(found, "pool/best_scores") > series(found, "objective/scores")).all()


def test_quark_asks_behind_the_token_of_the_best(work, sft, reward_model, tmp_path):
    changes = {"rollout.batch_size": 32, "minibatch_size": 8, "updates": 4, "train_on": "all"}
    changes |= {"lora.rank": 0, "optimizer.learning_rate": 1e-4}
    found = run("quark", tmp_path / "quark", scored(work, **changes))
    rises(found, "eval/scores")
    export = tmp_path / "quark" / "export"
    tokenizer = AutoTokenizer.from_pretrained(export)
    [best] = tokenizer.init_kwargs["prompt_prefix"]["ids"]
    theirs = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32)
    assert best < theirs.config.vocab_size == json.loads((export / "config.json").read_text())["vocab_size"]
