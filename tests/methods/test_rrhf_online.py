"""Online RRHF as every method is tested, its third step against NumPy in float64, provided responses, refusals."""

import numpy as np
import observed
import pytest
import tiny_farm
import tiny_words
from method_suite import MethodSuite
from test_golden import ADAM, numbers, responses
from tiny_words import BOS, EOS, VOCABULARY
from wide import wide

from rlhf_jax.data.files.tables import write_jsonl
from rlhf_jax.data.records.records import read_table, write_parquet
from rlhf_jax.data.tokens.tokenizer_files import load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.methods import rrhf
from rlhf_jax.sampling.decode_generator import DecodeGenerator
from rlhf_jax.training.rows import labelled_rows


@wide
class TestRrhfOnline(MethodSuite):
    """Its loss is that of RRHF on files, and its driver that of the other online methods."""

    job = "rrhf_online"
    steps = {"steps": 13}
    small = {"rollout.samples": 2, "kl_coef": 0.1}

    def inputs(self, farm, folder):
        rows = read_table(farm / "data/unlabeled.parquet")
        said = [row | {"output": text} for i, row in enumerate(rows) for text in ("Yes.", "No.")[: i % 3]]
        write_parquet(folder / "provided.parquet", said)
        return {"data.provided": str(folder / "provided.parquet")}


PROMPTS = tiny_words.sentences(10, 5, 18)


def provided_rows():
    """One to three responses to most of the prompts, some of them twice, and one to a prompt that is not asked."""
    rng = np.random.RandomState(40)
    rows = [
        {"prompt": prompt, "outputs": tiny_words.sentences(rng.randint(1, 4), 4, 50 + i)}
        for i, prompt in enumerate(PROMPTS)
        if i % 4
    ]
    return [*rows, {"prompt": "w1 w1 w1 w1", "outputs": ["w2"]}]


def settings(words, folder, **changes):
    prompts = [{"prompt": prompt} for prompt in PROMPTS]
    rows = {"data.train": prompts, "data.eval": prompts[:3], "data.provided": provided_rows()}
    start = {"model.policy": str(words / "language"), "model.reward": str(words / "reward")}
    start |= {"steps": 3, "rollout.batch_size": 4, "rollout.samples": 3, "minibatch_size": 4}
    start |= {"rollout.max_new_tokens": 5, "eval_every": 0, "save_every": 0, "best_metric": "", "seed": 3}
    return tiny_words.settings("rrhf_online", folder, rows, **start | changes)


def test_the_third_step(words, tmp_path, monkeypatch):
    """A minibatch is a whole rollout here, so that no order is drawn."""
    calls = []

    def scripted(self, tokens, lengths, rows, key, samples):
        calls.append(samples)
        return responses(len(calls), tokens.shape[0] * samples)

    monkeypatch.setattr(DecodeGenerator, "generate", scripted)
    page = settings(
        words,
        tmp_path,
        **{"epochs": 2, "microbatches": 2, "rollout.temperature": 0.8, "missing_eos_penalty": -1.5},
        **{"rank_weight": 0.7, "sft_weight": 0.4, "length_penalty": 0.8, "normalisation": "token_mean"},
        **{"kl_coef": 0.4, "optimizer.schedule": "constant", "optimizer.warmup_steps": 0},
        **{"optimizer.max_grad_norm": 3.0},
        **ADAM | {"optimizer.learning_rate": 0.02},
    )
    read = set()
    rrhf.run(observed.Settings(page, read), str(tmp_path / "run"))
    observed.assert_all_read("rrhf_online", read)
    assert calls == [1, 3, 3, 3, 1]
    names = (name for name in GOLDEN if name != "moved")
    assert numbers(tmp_path / "run", words / "language", *names) == pytest.approx(GOLDEN, rel=1e-4, abs=2e-5)
    first = next(row for row in tiny_farm.rows(tmp_path / "run") if "loss" in row)
    # A response of the first rollout is the one that was provided, word for word.
    assert first["candidates/repeated"] == pytest.approx(1 / 19)
    assert first["loss"] == pytest.approx(2.015648743, rel=1e-4)


# Of finite differences in float64; the gradients of the first five updates are clipped or not, the last are not.
GOLDEN = {"loss": 1.768235960, "grad_norm": 2.240582841, "loss/rank": 0.7292568974, "loss/sft": 3.144390330}
GOLDEN |= {"rank/accuracy": 0.86, "candidates/best_scores": -0.3024929885, "candidates/provided_best": 0.5}
GOLDEN |= {"objective/kl": 0.9793060651, "objective/scores": -0.6442770397}
GOLDEN |= {"eval/rlhf_reward": -1.072470906, "moved": -0.07100135935}


def provided(words, folder, rows, R=4, **changes):
    page = settings(words, folder, **changes)
    write_jsonl(page.data.provided, rows)
    records = [{"prompt": "w1"}, {"instruction": "w2", "input": ""}, {"prompt": "w3"}]
    tokenizer = load_tokenizer(words / "tokenizer")
    return labelled_rows.provided(page.data, tokenizer, records, (VOCABULARY[EOS],), R, "nothing")


def ids(text):
    return [VOCABULARY[x] for x in text.split()]


def test_provided_responses_stand_beside_their_prompts_as_if_they_had_been_sampled(words, tmp_path, capsys):
    rows = [
        {"prompt": "w3", "outputs": ["w4 w5", "w4 w5", "w6 w7 w8 w9"]},
        {"prompt": "w1", "output": "w7", "ended": False},
        {"prompt": "w9", "output": "w7"},
        {"prompt": "w3", "chosen": "w8", "rejected": "w9"},
    ]
    found = provided(words, tmp_path, rows)
    said = capsys.readouterr().out
    assert "data.provided: 4 responses to 2 of 3 prompts read" in said
    for reason in ("more than rollout.max_new_tokens tokens 1", "same response to the same prompt again 1"):
        assert reason in said
    assert "response to a prompt that is not trained on 1" in said
    arrays = found.arrays(np.array([2, 1, 0]), slice(0, 3), R=4, pad_id=1)
    assert arrays["provided_lengths"].tolist() == [[3, 2, 2], [0, 0, 0], [1, 0, 0]]
    assert arrays["provided_ended"].tolist() == [[True] * 3, [False] * 3, [False] * 3]
    tokens = arrays["provided_tokens"]
    assert tokens[0].tolist() == [
        [*ids(f"w4 w5 {EOS}"), 1],
        *([*ids(f"{x} {EOS}"), 1, 1] for x in ("w8", "w9")),
    ]
    assert tokens[1].tolist() == [[1] * 4] * 3 and tokens[2, 0].tolist() == [*ids("w7"), 1, 1, 1]
    mine = found.arrays(np.array([2, 1, 0]), slice(2, 3), R=4, pad_id=1)
    for name, x in mine.items():
        np.testing.assert_array_equal(x, arrays[name][2:], name)
    assert VOCABULARY[BOS] not in tokens


def test_responses_to_none_of_the_prompts_are_refused(words, tmp_path):
    for rows in ([{"prompt": "w9", "output": "w7"}], [{"prompt": "w1", "output": "w7 w7 w7 w7"}]):
        with pytest.raises(
            UserError, match=r"^data.provided: .* of the 3 prompts of data.train \(skipped .*\); give"
        ):
            provided(words, tmp_path, rows)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rank_weight": 0.0, "sft_weight": 0.0}, r"^rank_weight, sft_weight: both are 0"),
        (
            {"rollout.samples": 1, "data.provided": ""},
            r"^rollout.samples: 1 without data.provided leaves nothing to rank; use 2 or more$",
        ),
        (
            {"minibatch_size": 3},
            r"^minibatch_size: 3 does not divide the 4 rows of rollout.batch_size=4 with 3",
        ),
        ({"data.too_long": "cut_response"}, r"^data.too_long: cut_response, but .*; use drop or cut_prompt$"),
        ({"model.policy": "{words}/reward"}, r"^model.policy: .* is a reward model; give a language model$"),
        ({"kl_coef": -0.1}, r"^kl_coef: -0.1; use a finite number of at least 0$"),
        (
            {"data.provided": "nowhere.json"},
            r"^data.provided: nowhere.json: no such file; make it with: python",
        ),
    ],
)
def test_what_cannot_work_is_refused(words, tmp_path, changes, says):
    changes = {name: x.format(words=words) if isinstance(x, str) else x for name, x in changes.items()}
    page = settings(words, tmp_path)
    page.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=says):
        rrhf.run(page, str(tmp_path / "run"))


def test_half_a_pass_is_refused(words, tmp_path):
    page = settings(words, tmp_path)
    del page.epochs
    page.epochs = 1.5
    with pytest.raises(UserError, match=r"^epochs: 1.5 passes over a rollout; use a whole number$"):
        rrhf.run(page, str(tmp_path / "run"))
