"""Binary FeedME: which responses are imitated, which are counted out, and that the rest is SFT to the last bit."""

import numpy as np
import pytest
import tiny_farm
import tiny_words
from method_suite import MethodSuite
from test_golden import ADAM, THREE_STEPS

from rlhf_jax.data.records.records import read_pairs
from rlhf_jax.data.records.single_responses import responses_of_side
from rlhf_jax.errors import UserError
from rlhf_jax.methods import feedme, sft

TRAINED = THREE_STEPS | ADAM | {"optimizer.weight_decay": 0.1, "optimizer.max_grad_norm": 1.2}
TRAINED |= {"optimizer.schedule": "cosine", "optimizer.warmup_steps": 0, "optimizer.ema": 0.3}


class TestFeedme(MethodSuite):
    """Its runs; its loss is SFT's."""

    job = "feedme"
    steps = {"epochs": 1.3}


def pair(prompt, one, two, preference):
    return {"prompt": prompt, "output_1": one, "output_2": two, "preference": preference}


LABELS = [
    pair("w1 w2", "w3", "w4 w5", 1),
    pair("w1 w2", "w6", "w3", 2),  # w3 again
    pair("w1 w2", "w6", "w7", 1),
    pair("w8", "w3", "w9", 1.5),  # a tie
    pair("w8", "w3", "w9", None),  # no label
    pair("w8", "w3", "w9", 1),  # of another prompt
]


def numbers(folder):
    """All that three steps and their evaluation measured."""
    return [{k: v for k, v in row.items() if "pair" not in k} for row in tiny_farm.rows(folder)]


def test_the_preferred_response_of_each_pair_once():
    rows, left_out = read_pairs(LABELS)
    assert sum(left_out.values()) == 2 and any("tie" in reason for reason in left_out)
    found, repeated = responses_of_side(rows, "chosen")
    assert [(row["prompt"], row["output"]) for row in found] == [
        ("w1 w2", "w3"),
        ("w1 w2", "w6"),
        ("w8", "w3"),
    ]
    assert repeated == {"chosen in another pair, too": 1}
    found, repeated = responses_of_side(rows, "rejected")
    assert [row["output"] for row in found] == ["w4 w5", "w6", "w7", "w9"] and not repeated


def test_what_is_known_of_a_response_stays_with_it():
    rows = [
        {"prompt": "x", "chosen": "a", "rejected": "b", "rejected_ended": False, "chosen_fields": {"y": "z"}}
    ]
    assert responses_of_side(rows, "chosen")[0] == [
        {"prompt": "x", "output": "a", "output_fields": {"y": "z"}}
    ]
    assert responses_of_side(rows, "rejected")[0] == [{"prompt": "x", "output": "b", "ended": False}]


def test_it_is_sft_on_these_responses(words, tmp_path, capsys):
    """SFT's own three steps are checked against PyTorch's float64 in test_golden."""
    labels, held = tiny_words.pairs(10, 4) + LABELS, tiny_words.pairs(6, 7)
    start = {"model.init": str(words / "language")}
    page = tiny_words.settings(
        "feedme", tmp_path, {"data.train": labels, "data.eval": held}, **start | TRAINED
    )
    feedme.run(page, str(tmp_path / "run"))
    said = capsys.readouterr().out
    assert "data.train: 13 chosen responses of 14 pairs; skipped 1: chosen in another pair, too 1" in said

    def best(rows):
        return [{"prompt": x["prompt"], "output": x[f"output_{x['preference']}"]} for x in rows]

    again = [pair("w1 w2", "w3", "", 1), pair("w1 w2", "w6", "", 1), pair("w8", "w3", "", 1)]
    rows = best([*tiny_words.pairs(10, 4), *again])
    (tmp_path / "sft").mkdir()
    files = {"data.train": rows, "data.eval": best(held)}
    sft.run(tiny_words.settings("sft", tmp_path / "sft", files, **start | TRAINED), str(tmp_path / "sft/run"))
    assert numbers(tmp_path / "run") == numbers(tmp_path / "sft/run")
    ours, theirs = (tiny_words.load(folder / "export") for folder in (tmp_path / "run", tmp_path / "sft/run"))
    np.testing.assert_array_equal(ours["embed"], theirs["embed"])
    assert abs(tiny_words.moved(tiny_words.load(words / "language"), ours)) > 0.01


def test_a_reward_model_is_refused(words, tmp_path):
    page = tiny_words.settings(
        "feedme", tmp_path, {"data.train": tiny_words.pairs(10, 4)}, **{"model.init": str(words / "reward")}
    )
    with pytest.raises(
        UserError, match=r"^model.init: .*reward is a reward model; FeedME starts from a language"
    ):
        feedme.run(page, str(tmp_path / "run"))
