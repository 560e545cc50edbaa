"""RRHF: its token rows, its third step against PyTorch in float64, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_farm
import tiny_losses
import tiny_words
from method_suite import MethodSuite
from test_golden import ADAM, THREE_STEPS, numbers
from tiny_losses import Case

from rlhf_jax.data.candidate_arrays import check_ranked, encode_candidates, pad_candidates
from rlhf_jax.data.records.candidates import read_candidates
from rlhf_jax.data.templates import Handling
from rlhf_jax.data.tokens.tokenizer_files import load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import generate, score
from rlhf_jax.methods import rrhf
from rlhf_jax.training.run.session import Session


@pytest.fixture(scope="module")
def tokenizer(words):
    return load_tokenizer(words / "tokenizer")


def encoded(tokenizer, rows, max_length=8):
    return encode_candidates(
        read_candidates(rows)[0], tokenizer, "brief", max_length, Handling(too_long="drop")
    )


def test_a_response_that_is_too_long_leaves_the_others(tokenizer):
    rows = [
        {"prompt": "w1 w2", "responses": ["w3", "w4 w5 w6 w7 w8", "w9 w9"], "scores": [1.0, 3.0, 2.0]},
        {"prompt": "w1 w3", "responses": ["w4 w5 w6 w7 w8"], "scores": [1.0]},
        {"prompt": "w1", "responses": ["w3", "w4"], "scores": [1.0, 1.0]},
    ]
    found, counts = encoded(tokenizer, rows)
    assert len(found) == 2 and found.scores_nN.tolist() == [[1.0, 2.0], [1.0, 1.0]]
    assert counts == {
        "response too long": 2,
        "prompt without a response that is left": 1,
        "no two different scores, so no pair (row kept for its best response)": 1,
    }
    assert found.tokens.tolist() == [5 + 6, 4 + 4]
    check_ranked(found, "data.train")


def test_nothing_to_rank_is_refused(tokenizer):
    found, _ = encoded(tokenizer, [{"prompt": "w1", "responses": ["w3", "w4"], "scores": [1.0, 1.0]}])
    with pytest.raises(
        UserError, match=r"^data.train: none of 1 prompts has two responses with different scores"
    ):
        check_ranked(found, "data.train")


def test_arrays(tokenizer):
    rows = [
        {"prompt": "w1", "responses": ["w3", "w4 w5", "w6"], "scores": [1.0, 3.0, 2.0]},
        {"prompt": "w1 w2", "responses": ["w7"], "scores": [5.0]},
    ]
    found, _ = encoded(tokenizer, rows)
    arrays = pad_candidates(found, np.array([1, 0]), 4, 8, 1, slice(0, 2))
    assert arrays["candidates"].tolist() == [[True] + 3 * [False], 3 * [True] + [False]]
    assert arrays["lengths"].tolist() == [[5, 0, 0, 0], [4, 5, 4, 0]]
    assert arrays["prompt_lengths"].tolist() == [[3, 0, 0, 0], [2, 2, 2, 0]]
    assert arrays["scores"].tolist() == [[5.0, 0, 0, 0], [1.0, 3.0, 2.0, 0]]
    row = tiny_words.encoded("w1", "w4 w5")
    assert arrays["tokens"][1, 1].tolist() == [*row.prompt, *row.response, 1, 1, 1]
    assert (arrays["tokens"][0, 1:] == 1).all()
    mine = pad_candidates(found, np.array([1, 0]), 4, 8, 1, slice(1, 2))
    for name, x in mine.items():
        np.testing.assert_array_equal(x, arrays[name][1:], name)


class TestRrhf(MethodSuite):
    job = "rrhf"
    steps = {"epochs": 2.0}

    def case(self):
        N, rng = 3, np.random.default_rng(4)
        prompts = rng.integers(1, tiny_losses.P + 1, (tiny_losses.B, 1)).astype(np.int32)
        responses = rng.integers(1, tiny_losses.R + 1, (tiny_losses.B, N)).astype(np.int32)
        tokens = rng.integers(0, tiny_losses.CONFIG.vocab_size, (tiny_losses.B, N, tiny_losses.T))
        batch = {
            "tokens": tokens.astype(np.int32),
            "lengths": prompts + responses,
            "prompt_lengths": np.repeat(prompts, N, axis=1),
            # Whole numbers, so that some are equal.
            "scores": rng.integers(0, 4, (tiny_losses.B, N)).astype(np.float32),
            "candidates": (rng.random((tiny_losses.B, N)) < 0.8) | (np.arange(N) == 0),
            "weight": np.float32(np.arange(tiny_losses.B) % 6 != 4),
        }
        params = tiny_farm.random_params(scalar=False, seed=1)
        keep = ("lengths", "prompt_lengths", "scores", "candidates")
        return Case(lambda R: rrhf.rrhf_loss_fn(tiny_losses.CONFIG, R, 16), params, batch, keep)


OWN = {"rank_weight": 0.7, "sft_weight": 0.4, "length_penalty": 0.8, "normalisation": "token_mean"}


def settings(words, folder, train=None, **changes):
    rows = {"data.train": train or tiny_words.scored(10, 21), "data.eval": tiny_words.scored(6, 9)}
    start = {"model.init": str(words / "language"), "optimizer.warmup_steps": 0}
    return tiny_words.settings("rrhf", folder, rows, **start | changes)


def test_the_third_step(words, tmp_path):
    schedule = {"optimizer.schedule": "linear", "optimizer.max_grad_norm": 1.2}
    page = settings(words, tmp_path, **OWN | schedule | THREE_STEPS | ADAM)
    rrhf.run(page, str(tmp_path / "run"))
    found = numbers(tmp_path / "run", words / "language", *(name for name in GOLDEN if name != "moved"))
    assert found == pytest.approx(GOLDEN, rel=1e-4, abs=2e-5)


# The numbers of PyTorch in float64, pair by pair; the gradient of the first and the third step is clipped.
GOLDEN = {"loss": 1.92143970, "grad_norm": 2.31921388, "loss/rank": 0.82631800, "loss/sft": 3.35754274}
GOLDEN |= {"rank/accuracy": 0.6, "eval/loss": 1.70759389, "eval/rank/accuracy": 6 / 11, "moved": 0.04818385}


def loss_of(words, arrays, **changes):
    R = int((arrays["lengths"] - arrays["prompt_lengths"]).max())
    loss_fn = rrhf.rrhf_loss_fn(tiny_words.CONFIG, R, 4, **OWN | changes)
    return loss_fn(*jax.tree.map(jnp.asarray, (tiny_words.load(words / "language"), arrays)))


def test_neither_padding_nor_empty_places_nor_rows_of_weight_0_change_the_loss(words, tokenizer):
    found, _ = encoded(tokenizer, tiny_words.scored(5, 3), 12)
    N = found.places_nN.shape[1]
    want = loss_of(words, pad_candidates(found, np.arange(4), N, 12, 1, slice(None)))
    wide = pad_candidates(found, np.arange(5), N + 2, 20, 7, slice(None))
    got = loss_of(words, wide | {"weight": np.float32([1, 1, 1, 1, 0])})
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=2e-5, err_msg=name)


def test_it_learns_which_responses_are_better(words, tmp_path):
    changes = {
        "batch_size": 4,
        "epochs": 10.0,
        "optimizer.learning_rate": 0.02,
        "eval_every": 0,
        "log_every": 1,
    }
    rrhf.run(settings(words, tmp_path, **changes, sft_weight=0.0), str(tmp_path / "run"))
    train = [row for row in tiny_farm.rows(tmp_path / "run") if "loss" in row]
    for name, better in (("loss/rank", np.less), ("rank/accuracy", np.greater), ("rank/best", np.greater)):
        first, last = (np.mean([row[name] for row in part]) for part in (train[:3], train[-5:]))
        assert better(last, first), (name, first, last)


def test_a_run_that_goes_on_compares_each_of_its_files(words, tmp_path):
    page = settings(words, tmp_path)
    files = [page.data.train, page.data.eval]
    page.data.train, page.data.eval = ", ".join(files), ""
    session = Session(page, "", None, str(words / "language"), None, "", None)
    assert set(files) <= set(session.inputs())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rank_weight": 0.0, "sft_weight": 0.0}, r"^rank_weight, sft_weight: both are 0"),
        ({"model.init": "{words}/reward"}, r"^model.init: .* is a reward model; RRHF starts from a language"),
        ({"normalisation": "mean"}, r"^normalisation: 'mean'; use one of paper, token_mean, longest_row"),
    ],
)
def test_what_cannot_work_is_refused(words, tmp_path, changes, says):
    changes = {name: x.format(words=words) if isinstance(x, str) else x for name, x in changes.items()}
    with pytest.raises(UserError, match=says):
        rrhf.run(settings(words, tmp_path, **changes), str(tmp_path / "run"))


def test_score_writes_what_this_method_reads_and_a_policy_can_score(words, tmp_path):
    rows = tiny_words.scored(6, 33)
    page = tiny_words.settings(
        "score",
        tmp_path,
        {"data.responses": [{name: x for name, x in row.items() if name != "scores"} for row in rows]},
        **{"model.path": str(words / "language"), "model.score_by": "logprob"},
    )
    score.run(page, str(tmp_path / "out"))
    found, skipped = read_candidates(str(tmp_path / "out/scores.parquet"))
    params = tiny_words.load(words / "language")
    for row, one in zip(rows, found, strict=True):
        asked = [tiny_words.encoded(row["prompt"], said) for said in dict.fromkeys(row["responses"])]
        want = [tiny_words.logprob(params, x) / len(x.response) for x in asked]
        np.testing.assert_allclose([x["score"] for x in one["candidates"]], want, atol=1e-5)
    assert not skipped.columns
    page.model.path = str(words / "reward")
    with pytest.raises(UserError, match=r"^model.path: .* is a reward model; use model.score_by=reward"):
        score.run(page, str(tmp_path / "wrong"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"samples": 5}, r"^samples: 5 of beams=4; use at most as many as there are beams"),
        ({"batch_size": 6}, r"^batch_size: 6 responses at a time; use a multiple of beams=4"),
        ({"beam_groups": 3}, r"^beam_groups: 3 groups do not divide beams=4"),
    ],
)
def test_beams_that_cannot_be_are_refused(words, tmp_path, changes, says):
    prompts = {"data.prompts": [{"prompt": "w1"}]}
    start = {"model.path": str(words / "language"), "beams": 4, "samples": 4}
    with pytest.raises(UserError, match=says):
        generate.run(
            tiny_words.settings("generate", tmp_path, prompts, **start | changes), str(tmp_path / "run")
        )
