"""Every method that learns from fixed rows, on a real chat model: a few steps with an adapter, each with its aim.

What a method should reach is chosen so that the model does not do it by itself: the absurd answers are made the
better ones where it would find them unlikely anyway.
"""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("gguf", reason="the package gguf is not installed")

import texts  # noqa: E402
from real_runs import MARKS, NEW, OFFLINE, STEPS, metrics_of, page_of, run, series, train  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from rlhf_jax.data.records.records import read_table, write_jsonl  # noqa: E402

torch.set_num_threads(1)  # The cores are busy; threads that wait for each other crawl.
pytestmark = MARKS
ROWS = list(zip(texts.INSTRUCTIONS, texts.ANSWERS, texts.BAD, strict=True))


def rows_in(file, rows):
    """Writes rows that are both trained on and evaluated; the settings that name them."""
    write_jsonl(file, rows)
    return OFFLINE | {"data.train": file, "data.eval": file}


def absurd_pairs(folder):
    return rows_in(folder / "rows.jsonl", [{"prompt": i, "chosen": b, "rejected": a} for i, a, b in ROWS])


def test_kto_tells_what_is_desirable(model, tmp_path):
    rows = [{"prompt": i, "completion": x, "label": x in texts.BAD} for i, a, b in ROWS for x in (a, b)]
    changes = rows_in(tmp_path / "rows.jsonl", rows) | {
        "model.init": model,
        "beta": 0.1,
        "data.eval_rows": 16,
    }
    changes |= {"batch_size": 8, "epochs": STEPS * 8 / 16, "reference_cache": tmp_path / "reference"}
    found = train("kto", tmp_path / "kto", changes)
    assert series(found, "loss")[0] == pytest.approx(0.5, abs=1e-3)
    assert series(found, "loss")[-1] < 0.45
    assert series(found, "eval/rewards/chosen")[-1] > series(found, "eval/rewards/rejected")[-1]


def test_rrhf_ranks_by_the_scores(model, tmp_path):
    others = texts.ANSWERS[1:] + texts.ANSWERS[:1]
    rows = [
        {"prompt": i, "responses": [a, b, other], "scores": [0.0, 1.0, -1.0]}
        for (i, a, b), other in zip(ROWS[:2], others, strict=False)
    ]
    # Both prompts are in every batch: the sums of log-probs differ much from prompt to prompt.
    changes = rows_in(tmp_path / "rows.jsonl", rows) | {
        "model.init": model,
        "batch_size": 2,
        "epochs": float(STEPS),
    }
    found = train("rrhf", tmp_path / "rrhf", changes)
    assert series(found, "loss")[-1] < 0.7 * series(found, "loss")[0]
    assert series(found, "eval/rank/accuracy")[-1] > series(found, "rank/accuracy")[0]


def test_feedme_imitates_what_was_chosen(model, tmp_path):
    found = train("feedme", tmp_path / "feedme", absurd_pairs(tmp_path) | {"model.init": model})
    assert series(found, "loss")[-1] < 0.7 * series(found, "loss")[0]


def likelihoods(folder, markers, instruction, answer):
    """The mean log-prob of an answer's tokens as transformers computes it, behind each of the markers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": instruction}], add_generation_prompt=True, tokenize=False
    )
    found = []
    for marker in markers:
        prompt = tokenizer(marker, add_special_tokens=False).input_ids
        prompt = prompt + tokenizer(asked, add_special_tokens=False).input_ids
        said = tokenizer(answer, add_special_tokens=False).input_ids
        with torch.no_grad():
            logits = theirs(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]
        found.append(logits.log_softmax(-1)[range(len(said)), said].mean().item())
    return found


@pytest.mark.parametrize("tokens", [False, True], ids=["text, adapter", "tokens, all parameters"])
def test_reward_conditioning_answers_by_its_marker(model, tmp_path, tokens):
    markers = ("<|chosen|>", "<|rejected|>") if tokens else ("Absurd answer: ", "Plain answer: ")
    changes = absurd_pairs(tmp_path) | {"model.init": model, "marker_tokens": tokens}
    changes |= {"positive": markers[0], "negative": markers[1], "epochs": 1.5}
    rate = {"lora.rank": 0, "optimizer.learning_rate": 3e-4} if tokens else {}
    workdir = tmp_path / "reward_conditioning"
    found = (run if tokens else train)("reward_conditioning", workdir, changes | rate)
    assert series(found, "loss")[-1] < 0.7 * series(found, "loss")[0]
    absurd, plain = likelihoods(workdir / "export", markers, texts.INSTRUCTIONS[5], texts.BAD[5])
    assert absurd > plain
    tokenizer = AutoTokenizer.from_pretrained(workdir / "export")
    assert tokenizer.init_kwargs["prompt_prefix"]["text"] == markers[0]
    assert not tokens or {"<|chosen|>", "<|rejected|>"} <= set(tokenizer.get_added_vocab())


RATINGS = [{"prompt": i, "output": x, "rating": n} for i, a, b in ROWS for x, n in ((a, 6), (b, 2))]


@pytest.mark.parametrize("loss", ["regression", "ordinal"])
def test_a_reward_model_learns_ratings(model, tmp_path, loss):
    # The same four rows in every step: at a rate for pairs, or from batch to batch, the fresh head swings to and fro.
    changes = rows_in(tmp_path / "rows.jsonl", RATINGS[:4]) | {"model.init": model, "loss": loss}
    changes |= {"score_as": "sigmoid" if loss == "regression" else "logit", "center_on": ""}
    changes |= {"optimizer.learning_rate": 3e-4, "epochs": 6.0}
    found = train("reward_model:ratings", tmp_path / "ratings", changes)
    # The ordinal loss has a floor: a rating between two thresholds is never certain while these are a step apart.
    least = 0.7 if loss == "regression" else 0.8
    assert series(found, "eval/loss")[-1] < least * series(found, "loss")[0]
    assert series(found, "eval/ratings/error")[-1] < series(found, "ratings/error")[0]
    for good, bad in scored(tmp_path / "ratings" / "export", tmp_path)[:2]:
        assert good > bad


def scored(folder, workdir):
    """The scores of the answers and of the absurd ones, [8, 2], as the job `score` gives them."""
    write_jsonl(workdir / "asked.jsonl", [{"prompt": i, "outputs": [a, b]} for i, a, b in ROWS])
    changes = {"model.path": folder, "data.responses": workdir / "asked.jsonl", "data.template": "chat"}
    run("score", workdir / "scores", changes | {"data.max_length": 64, "batch_size": 8})
    return [row["scores"] for row in read_table(str(workdir / "scores" / "scores.parquet"))]


def test_an_ensemble_of_reward_models_is_read_as_one(model, work, tmp_path):
    changes = OFFLINE | {"data.train": work / "pairs.jsonl", "data.eval": work / "pairs.jsonl"}
    changes |= {"model.init": model, "members": 2, "center_on": work / "sft.jsonl", "center_rows": 8}
    found = train("reward_model:ensemble", tmp_path / "ensemble", changes, member="member_0")
    assert series(found, "loss")[-1] < series(found, "loss")[0]
    assert series(found, "eval/rewards/accuracies")[-1] == 1.0
    members = [tmp_path / "ensemble" / "export" / f"member_{n}" for n in range(2)]
    one_by_one = np.array([scored(folder, folder.parent.parent / folder.name) for folder in members])
    together = np.array(scored(tmp_path / "ensemble" / "export", tmp_path))
    np.testing.assert_allclose(together, one_by_one.mean(axis=0), atol=1e-3)
    assert np.abs(one_by_one[0] - one_by_one[1]).max() > 1e-2
    assert (together[:, 0] > together[:, 1]).all()


def test_a_round_of_expert_iteration_raises_the_score(model, work, reward_model, tmp_path):
    first = "runs/farm/sft/export"
    stages = [
        tuple(part.replace(first, model) for part in stage)
        for stage in page_of("expert_iteration", {}).stages
        if stage[0].startswith("round_1/")
    ]
    assert [stage[0] for stage in stages] == [f"round_1/{x}" for x in ("samples", "scores", "best", "sft")]
    stages += [
        ("after/samples", "samples", "model.path={round_1/sft}/export"),
        ("after/scores", "scores", "data.responses={after/samples}/outputs.parquet"),
    ]
    groups = {
        "samples": {"data.prompts": work / "prompts.jsonl", "data.max_prompt_length": 64, "samples": 4},
        "scores": {"model.path": work / "reward_model" / "export", "data.max_length": 64, "batch_size": 32},
        "sft": OFFLINE | {"data.eval": work / "sft.jsonl", "epochs": 2.0},
    }
    groups["samples"] |= {"max_new_tokens": NEW, "batch_size": 32}
    changes = {f"{group}.{name}": x for group, fields in groups.items() for name, x in fields.items()}
    changes |= {"samples.data.template": "chat", "scores.data.template": "chat"}
    run("expert_iteration", tmp_path, changes | {"stages": tuple(stages), "report": ""})
    before, after = (
        np.array([row["scores"] for row in read_table(str(tmp_path / x / "scores" / "scores.parquet"))])
        for x in ("round_1", "after")
    )
    table = json.loads((tmp_path / "round_1" / "best" / "best_of_n.json").read_text())
    assert before.shape == (8, 4) and np.isfinite(before).all() and np.isfinite(after).all()
    best_of_4 = {row["k"]: row for row in table["best_of"]}[4]
    assert best_of_4["score"] == pytest.approx(before.max(axis=1).mean(), abs=1e-4)
    assert best_of_4["score"] > before.mean()
    assert after.mean() > before.mean()
    tuned = metrics_of(tmp_path / "round_1" / "sft")
    assert series(tuned, "loss")[-1] < 0.7 * series(tuned, "loss")[0]
    assert (tmp_path / "round_1" / "sft" / "adapter" / "adapter_model.safetensors").is_file()
