"""Reward conditioning: which marker stands before which response, and that the good one is there when it is asked."""

import json

import numpy as np
import pytest
import tiny_farm
import tiny_words
from method_suite import MethodSuite
from test_feedme import LABELS, TRAINED, numbers
from tiny_words import BOS, EOS, VOCABULARY

from rlhf_jax.data.files.tables import read_rows, write_jsonl
from rlhf_jax.data.tokens.tokenizer_files import load_tokenizer, prefix_text
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import generate
from rlhf_jax.methods import reward_conditioning, sft
from rlhf_jax.sampling.decode_generator import DecodeGenerator
from rlhf_jax.training.rows import labelled_rows
from rlhf_jax.training.run import encoded_rows

GOOD, BAD = len(VOCABULARY), len(VOCABULARY) + 1  # The ids that new tokens get.


class TestRewardConditioning(MethodSuite):
    """Its runs; its loss is SFT's."""

    job = "reward_conditioning"
    steps = {"epochs": 0.65}


def settings(words, folder, train, **changes):
    page = {"model.init": str(words / "language")} | TRAINED | changes
    files = {"data.train": train, "data.eval": tiny_words.pairs(6, 7)}
    return tiny_words.settings("reward_conditioning", folder, files, **page)


def sft_rows(pairs, good, bad):
    """What is trained, written as demonstrations with the markers in their prompts."""
    found = []
    for marker, side in ((good, 0), (bad, 1)):
        for x in pairs:
            picked = (x["preference"], 3 - x["preference"])[side]
            found.append({"prompt": f"{marker} {x['prompt']}", "output": x[f"output_{picked}"]})
    return list({json.dumps(row): row for row in found}.values())


def test_it_is_sft_behind_the_markers(words, tmp_path, capsys):
    """With markers of text, words that the tokenizer has. SFT itself is checked against PyTorch in test_golden."""
    labels = tiny_words.pairs(10, 4) + LABELS
    markers = {"marker_tokens": False, "positive": "w14", "negative": "w15"}
    reward_conditioning.run(settings(words, tmp_path, labels, **markers), str(tmp_path / "run"))
    said = capsys.readouterr().out
    assert "data.train: 13 chosen responses of 14 pairs; skipped 1: chosen in another pair, too 1" in said
    assert "data.train: 14 rejected responses of 14 pairs; " in said
    assert "'w15' in front of the prompt, as the tokenizer says (row kept) 14" in said
    (tmp_path / "sft").mkdir()
    usable = [x for x in labels if x["preference"] in (1, 2)]
    files = {"data.train": sft_rows(usable, "w14", "w15")}
    files["data.eval"] = sft_rows(tiny_words.pairs(6, 7), "w14", "w15")
    page = tiny_words.settings(
        "sft", tmp_path / "sft", files, **{"model.init": str(words / "language")} | TRAINED
    )
    sft.run(page, str(tmp_path / "sft/run"))
    assert numbers(tmp_path / "run") == numbers(tmp_path / "sft/run")


@pytest.fixture(scope="module")
def trained(words, tmp_path_factory):
    """A model that was trained with markers that are tokens; at a rate of 0, so that its weights are known."""
    folder = tmp_path_factory.mktemp("conditioned")
    page = settings(words, folder, tiny_words.pairs(10, 4), **{"optimizer.learning_rate": 0.0})
    reward_conditioning.run(page, str(folder / "run"))
    return folder / "run/export"


def test_new_tokens_start_as_the_mean_of_the_others(words, trained):
    before, after = (tiny_words.load(folder) for folder in (words / "language", trained))
    assert after["embed"].shape[0] == len(VOCABULARY) + 2
    np.testing.assert_allclose(after["embed"][GOOD], before["embed"].mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(after["embed"][BAD], before["embed"].mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(after["embed"][:GOOD], before["embed"])


def test_each_response_stands_behind_the_marker_of_its_side(words, tmp_path, monkeypatch):
    seen, encode = [], labelled_rows.single_responses
    monkeypatch.setattr(labelled_rows, "single_responses", lambda *a: seen.append(encode(*a)) or seen[-1])
    reward_conditioning.run(settings(words, tmp_path, LABELS, epochs=0.1), str(tmp_path / "run"))
    texts = [x.tolist() for x in (seen[0].train[i] for i in range(len(seen[0].train)))]

    def row(marker, prompt, response):
        ids = (VOCABULARY[x] for x in (*response.split(), EOS))
        return [VOCABULARY[BOS], marker, *(VOCABULARY[x] for x in prompt.split()), *ids]

    chosen = [("w1 w2", "w3"), ("w1 w2", "w6"), ("w8", "w3")]
    rejected = [("w1 w2", "w4 w5"), ("w1 w2", "w6"), ("w1 w2", "w7"), ("w8", "w9")]
    assert texts == [row(GOOD, *x) for x in chosen] + [row(BAD, *x) for x in rejected]


def test_the_trained_model_is_asked_behind_the_positive_marker(trained, tmp_path, monkeypatch, capsys):
    """By a job that is told nothing but the folder."""
    asked, sample = [], DecodeGenerator.generate

    def generated(self, tokens, lengths, rows, key):
        asked.extend(np.asarray(x)[-n:].tolist() for x, n in zip(tokens, lengths, strict=True))
        return sample(self, tokens, lengths, rows, key)

    monkeypatch.setattr(DecodeGenerator, "generate", generated)
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "w1 w2"}, {"prompt": "w8"}])
    changes = {"model.path": str(trained), "data.prompts": str(tmp_path / "prompts.jsonl"), "batch_size": 2}
    generate.run(tiny_farm.settings("generate", tmp_path, **changes), str(tmp_path / "out"))
    bos, w1, w2, w8 = (VOCABULARY[x] for x in (BOS, "w1", "w2", "w8"))
    assert asked == [[bos, GOOD, w1, w2], [bos, GOOD, w8]]
    assert (
        "'<|chosen|>' in front of the prompt, as the tokenizer says (row kept) 2" in capsys.readouterr().out
    )
    # The prompt as it was asked for, without the marker: judges and reward models read that.
    assert [row["prompt"] for row in read_rows(tmp_path / "out/outputs.parquet")] == ["w1 w2", "w8"]


def test_rollouts_and_further_training_begin_with_it_too(trained, tmp_path):
    tokenizer = load_tokenizer(trained)
    assert prefix_text(tokenizer) == "<|chosen|>"
    for job, read, rows in (
        ("ppo", encoded_rows.prompts, [{"prompt": f"w{i} w2"} for i in range(16)]),
        ("sft", encoded_rows.instructions, tiny_words.demonstrations(16, 2)),
    ):
        page = tiny_words.settings(
            job, tmp_path, {"data.train": rows}, **{"data.eval": "", "data.eval_rows": 2}
        )
        found = read(page.data, tokenizer, 0, "").train
        assert all(found[i][1] == GOOD for i in range(len(found)))


def test_a_model_that_lacks_the_marker_is_refused(words, trained, tmp_path):
    """A tokenizer with a marker beside a model whose embeddings do not reach it, as after a copy of wrong files."""
    for file in (words / "language").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    page = tiny_farm.settings("generate", tmp_path, **{"model.path": str(tmp_path)})
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "w1"}])
    page.data.prompts = str(tmp_path / "prompts.jsonl")
    with pytest.raises(
        UserError, match=rf"puts token {GOOD} in front of every prompt, and the model has embeddings"
    ):
        generate.run(page, str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"negative": "<|chosen|>"}, r"negative: '<\|chosen\|>' is the positive marker, too"),
        (
            {"lora.rank": 2},
            r"marker_tokens: true with lora.rank=2, which does not train .*marker_tokens=false",
        ),
        ({"positive": EOS}, r"positive: '</s>' is \[3\] for the tokenizer, which has other uses"),
        ({"marker_tokens": False}, r"positive: '<\|chosen\|>' is \[0\] for the tokenizer"),  # an unknown word
        (
            {"marker_tokens": False, "positive": "w1", "negative": " w1"},
            "negative: ' w1' and 'w1' are the same",
        ),
        ({"positive": " "}, "positive: ' '; use text that is not blank"),
    ],
)
def test_markers_that_cannot_work_are_refused(words, tmp_path, changes, why):
    page = settings(words, tmp_path, tiny_words.pairs(10, 4), **changes)
    with pytest.raises(UserError, match=f"^{why}"):
        reward_conditioning.run(page, str(tmp_path / "run"))


def test_an_adapter_learns_markers_of_text(words, tmp_path):
    markers = {"marker_tokens": False, "positive": "w14", "negative": "w15", "lora.rank": 2, "epochs": 0.5}
    reward_conditioning.run(
        settings(words, tmp_path, tiny_words.pairs(10, 4), **markers), str(tmp_path / "run")
    )
    assert prefix_text(load_tokenizer(tmp_path / "run/export")) == "w14"


def test_the_new_tokens_part_and_the_checkpoints_have_them_too(words, tmp_path):
    page = settings(words, tmp_path, tiny_words.pairs(10, 4))
    reward_conditioning.run(page, str(tmp_path / "run"))
    assert prefix_text(load_tokenizer(tmp_path / "run/model")) == "<|chosen|>"
    embed = tiny_words.load(tmp_path / "run/export")["embed"]
    # The two new rows began as one, and what follows them has told them apart.
    assert np.abs(embed[GOOD] - embed[BAD]).max() > 1e-3
