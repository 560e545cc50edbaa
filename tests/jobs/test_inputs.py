"""Held-out rows: no prompt on both sides, enough prompts, nothing lost without being counted."""

from collections import Counter

import numpy as np
import pytest
import tiny_farm

from rlhf_jax.data.files.tables import write_jsonl
from rlhf_jax.data.tokens.tokenizer_files import load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.training.run import encoded_rows


def rows_of(*counts):
    """Rows of len(counts) prompts, so many of each."""
    return [
        {"instruction": f"prompt {k}", "input": "", "row": i} for k, n in enumerate(counts) for i in range(n)
    ]


def prompts_of(rows):
    return {row["instruction"] for row in rows}


@pytest.mark.parametrize("counts", [[1] * 50, [3] * 50, [40] * 100, [90, 10]])
def test_no_prompt_is_on_both_sides(counts):
    rows = rows_of(*counts)
    train, held, left_out = encoded_rows.hold_out(rows, 10, seed=1)
    assert not prompts_of(train) & prompts_of(held)
    assert len(train) + len(held) + left_out.total() == len(rows)
    assert len(held) == 10


def test_many_rows_of_a_prompt_do_not_make_an_evaluation_of_few_prompts():
    _, held, left_out = encoded_rows.hold_out(rows_of(*[40] * 100), 40, seed=0)
    assert len(held) == 40 and len(prompts_of(held)) >= 4
    assert left_out == Counter({"other row of a held-out prompt": 5 * 40 - 40})


def test_the_split_depends_on_the_seed_alone():
    rows = rows_of(*[2] * 40)
    assert encoded_rows.hold_out(rows, 10, seed=3) == encoded_rows.hold_out(rows, 10, seed=3)
    assert encoded_rows.hold_out(rows, 10, seed=3)[1] != encoded_rows.hold_out(rows, 10, seed=4)[1]


def test_rows_of_one_prompt_cannot_be_split():
    with pytest.raises(
        UserError, match=r"data.eval_rows: 10 rows cannot be held out of 1 prompt; set data.eval"
    ):
        encoded_rows.hold_out(rows_of(30), 10, seed=0)


def test_train_rows_draws_a_part(farm, capsys):
    tokenizer = load_tokenizer(farm / "data/tokenizer")

    def train(rows, seed=0):
        data = tiny_farm.settings("sft", farm, **{"data.train_rows": rows}).data
        return encoded_rows.instructions(data, tokenizer, seed, "").train

    def sequences(found):
        return [x.tobytes() for x in np.split(found.tokens, np.cumsum(found.lengths)[:-1])]

    everything, part = train(0), train(50)
    assert (len(everything), len(part)) == (200, 50)
    assert set(sequences(part)) <= set(sequences(everything))
    assert sequences(train(50)) == sequences(part) != sequences(train(50, seed=1))


def test_evaluation_rows_and_demonstrations_are_drawn_with_the_seed(farm, tmp_path, capsys):
    from rlhf_jax.methods import reward_model

    rows = [{"instruction": f"Say {i}.", "input": "", "output": "word"} for i in range(60)]
    rows[40]["output"] = "word " * 500  # Longer than any limit: it would be scored in mid-sentence.
    write_jsonl(tmp_path / "rows.jsonl", rows)
    tokenizer = load_tokenizer(farm / "data/tokenizer")
    changes = {"data.eval": str(tmp_path / "rows.jsonl"), "data.eval_rows": 10}
    data = tiny_farm.settings("sft", farm, **changes).data
    held = [encoded_rows.instructions(data, tokenizer, seed, "").eval_rows for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2] and len(held[0]) == 10
    assert held[0] != rows[:10]
    found = {}
    for count in (30, 60):
        changes = {"center_on": str(tmp_path / "rows.jsonl"), "center_rows": count, "seed": 5}
        config = tiny_farm.settings("reward_model", farm, **changes)
        found[count] = reward_model._demonstrations(config, tokenizer)
    assert len(found[60]) == 59 and found[60].lengths.max() <= config.data.max_length
    assert "center_on: 59 demonstrations; skipped 1: demonstration too long 1" in capsys.readouterr().out
    first = encoded_rows.draw(rows, 30, np.random.default_rng(config.seed))
    wanted = [row["instruction"] for row in first if len(row["output"]) < 100]
    texts = [tokenizer.decode(ids) for ids in np.split(found[30].tokens, found[30].offsets[1:-1])]
    assert all(asked in text for asked, text in zip(wanted, texts, strict=True))


def test_a_mean_is_over_the_demonstrations_that_fit_and_ended(farm, tmp_path, capsys):
    """One of just the longest length fits; one that its sampler cut has no end to be scored at."""
    from rlhf_jax.methods import reward_model

    rows = [{"instruction": "Say it.", "input": "", "output": "word " * n} for n in (2, 4, 8)]
    write_jsonl(tmp_path / "rows.jsonl", [*rows, rows[0] | {"ended": False}])
    tokenizer = load_tokenizer(farm / "data/tokenizer")

    def lengths(longest):
        changes = {"center_on": str(tmp_path / "rows.jsonl"), "data.max_length": longest}
        page = tiny_farm.settings("reward_model", farm, **changes, **{"data.not_ended": "keep"})
        return reward_model._demonstrations(page, tokenizer).lengths.tolist()

    every = lengths(500)
    assert len(every) == 3 and every[0] < every[1] < every[2]
    assert "response did not end 1" in capsys.readouterr().out
    assert lengths(every[2]) == every and lengths(every[2] - 1) == every[:2]
