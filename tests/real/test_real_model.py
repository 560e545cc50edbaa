"""A real chat model through every method: read from GGUF, sampled, trained with adapters, exported, read again.

What is random and tiny elsewhere is here what people have: a tokenizer of 49,152 tokens, a chat template, tied
embeddings, weights that know something.
"""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("gguf", reason="the package gguf is not installed")

import texts  # noqa: E402
from real_runs import ADAPTER, MARKS, NEW, OFFLINE, run, series, train  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from rlhf_jax.data.records.records import read_table, write_jsonl  # noqa: E402
from rlhf_jax.models.gguf import gguf_files  # noqa: E402

torch.set_num_threads(1)  # The cores are busy; threads that wait for each other crawl.
pytestmark = MARKS


def chat(tokenizer, instruction, answer=None):
    turns = [{"role": "user", "content": instruction}]
    if answer is None:
        return tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    turns.append({"role": "assistant", "content": answer})
    return tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)


def test_greedy_samples_are_those_of_transformers(model, work):
    changes = {"model.path": model, "data.prompts": work / "prompts.jsonl", "data.template": "chat"}
    changes |= {"data.max_prompt_length": 64, "temperature": 0.0, "max_new_tokens": NEW, "batch_size": 8}
    run("generate", work / "outputs", changes)
    ours = [row["output"] for row in read_table(str(work / "outputs" / "outputs.parquet"))]
    folder = gguf_files.as_folder(model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    asked = [[{"role": "user", "content": text}] for text in texts.INSTRUCTIONS]
    tokenizer.padding_side = "left"
    prompts = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        ids = theirs.generate(**prompts, do_sample=False, max_new_tokens=NEW)[
            :, prompts["input_ids"].shape[1] :
        ]
    assert ours == tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert sum("Tokyo" in text for text in ours) == 1  # It knows something.


def test_sft_lowers_the_loss_also_as_transformers_computes_it(model, work, sft):
    assert series(sft, "loss")[-1] < 0.7 * series(sft, "loss")[0]
    tokenizer = AutoTokenizer.from_pretrained(work / "sft" / "export")
    losses = []
    for folder in (gguf_files.as_folder(model), work / "sft" / "export"):
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        row = chat(tokenizer, texts.INSTRUCTIONS[2], texts.ANSWERS[2])
        labels = row["input_ids"].clone()
        labels[:, : chat(tokenizer, texts.INSTRUCTIONS[2])["input_ids"].shape[1]] = -100
        with torch.no_grad():
            losses.append(theirs(**row, labels=labels).loss.item())
    assert losses[1] < 0.7 * losses[0]
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.chat_template


def test_a_reward_model_prefers_the_answers_also_in_transformers(work, reward_model):
    assert series(reward_model, "loss")[-1] < series(reward_model, "loss")[0]
    assert series(reward_model, "eval/rewards/accuracies")[-1] == 1.0
    tokenizer = AutoTokenizer.from_pretrained(work / "reward_model" / "export")
    theirs = AutoModelForSequenceClassification.from_pretrained(
        work / "reward_model" / "export", dtype=torch.float32
    )
    for instruction, good, bad in list(zip(texts.INSTRUCTIONS, texts.ANSWERS, texts.BAD, strict=True))[:3]:
        with torch.no_grad():
            scores = [theirs(**chat(tokenizer, instruction, text)).logits.item() for text in (good, bad)]
        assert scores[0] > scores[1]


def test_scores_are_those_of_transformers(work, reward_model):
    rows = [
        {"prompt": i, "output": x} for i, x in zip(texts.INSTRUCTIONS[:4], texts.ANSWERS[:4], strict=True)
    ]
    write_jsonl(work / "responses.jsonl", rows)
    folder = work / "reward_model" / "export"
    changes = {"model.path": folder, "data.responses": work / "responses.jsonl", "data.template": "chat"}
    run("score", work / "scores", changes | {"data.max_length": 64, "batch_size": 4})
    ours = [row["scores"][0] for row in read_table(str(work / "scores" / "scores.parquet"))]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    mean = json.loads((folder / "config.json").read_text())["reward_mean"]
    for row, score in zip(rows, ours, strict=True):
        ids = chat(tokenizer, row["prompt"], row["output"])["input_ids"]
        end = int((ids[0] == tokenizer.eos_token_id).nonzero()[-1])
        with torch.no_grad():
            hidden = theirs.model(ids).last_hidden_state[0, end]
            assert score == pytest.approx(theirs.score(hidden).item() - mean, abs=1e-3)


def test_dpo_widens_the_margin(model, work):
    data = {"data.train": work / "pairs.jsonl", "data.eval": work / "pairs.jsonl", "model.init": model}
    rows = train("dpo", work / "dpo", OFFLINE | data | {"beta": 0.1, "reference_cache": work / "reference"})
    assert series(rows, "loss")[0] == pytest.approx(np.log(2), abs=1e-3)
    assert series(rows, "loss")[-1] < 0.6
    assert series(rows, "rewards/margins")[-1] > 0.2
    AutoModelForCausalLM.from_pretrained(work / "dpo" / "export", dtype=torch.float32)


def test_ppo_raises_the_score(model, work, reward_model):
    changes = ADAPTER | {"data.train": work / "prompts.jsonl", "data.eval": work / "prompts.jsonl"}
    changes |= {"model.policy": model, "model.reward": work / "reward_model" / "export"}
    changes |= {"data.max_prompt_length": 64, "data.eval_rows": 8, "rollout.batch_size": 8}
    changes |= {"rollout.max_new_tokens": NEW, "minibatch_size": 8, "epochs": 2, "steps": 2}
    changes |= {"eval_every": 2, "save_every": 2, "missing_eos_penalty": 0.0}
    rows = train("ppo", work / "ppo", changes)
    assert series(rows, "eval/raw_scores")[-1] > series(rows, "eval/raw_scores")[0]
    for name in ("loss", "objective/scores", "objective/kl", "val/mean", "grad_norm"):
        series(rows, name)
    assert series(rows, "eval/kl")[-1] > 0.1
    AutoModelForCausalLM.from_pretrained(work / "ppo" / "export", dtype=torch.float32)
