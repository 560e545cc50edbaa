"""From records to the rows of batches: which are drawn, what they are numbered with, how many tokens they have."""

import numpy as np
import pytest
import tiny_farm
from chat_tokenizers import CHATML, build

from rlhf_jax.data.batches import Pairs, Sequences
from rlhf_jax.data.files.tables import write_jsonl
from rlhf_jax.training.run import encoded_rows
from rlhf_jax.training.run.encoded_rows import Split


def sequences(lengths, seed=0):
    """Rows of so many tokens, of which the first two are the prompt."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = np.random.default_rng(seed).integers(3, 40, offsets[-1]).astype(np.int32)
    return Sequences(tokens, offsets, np.full(len(lengths), 2, np.int32))


def rows_of(train, held, *, seed=0, **data):
    page = tiny_farm.settings("sft", "farm", **{f"data.{name}": value for name, value in data.items()})
    return encoded_rows.rows_of(Split(train, held, []), page.data, 0, seed)


def test_the_tokens_of_a_row_are_those_of_its_prompt_and_its_responses():
    one, two = sequences([3, 9, 5]), sequences([4, 6, 8])
    train, held, R = rows_of(one, two)
    assert (train.tokens.tolist(), held.tokens.tolist(), R) == ([3, 9, 5], [4, 6, 8], 7)
    train, *_ = rows_of(Pairs(one, two), Pairs(two, one))
    assert train.tokens.tolist() == [7, 15, 13]


def test_rows_are_packed_with_the_seed(capsys):
    found = sequences(np.random.default_rng(1).integers(3, 20, 40))
    members = [
        rows_of(found, found, seed=seed, packing="on", max_length=48)[0].layout[0] for seed in (1, 1, 2)
    ]
    assert members[0].tolist() == members[1].tolist() != members[2].tolist()
    assert sorted(members[2]) == list(range(40))


def test_a_draw_takes_no_row_twice_and_keeps_their_order():
    rows = [f"row {i:03}" for i in range(100)]
    found = encoded_rows.draw(rows, 60, np.random.default_rng(0))
    assert len(set(found)) == 60 and found == sorted(found)
    assert encoded_rows.draw(rows, 100, np.random.default_rng(0)) == rows


@pytest.fixture(scope="module")
def tokenizer():
    return build(CHATML, ["<|endoftext|>", "<|im_end|>"], eos_token="<|im_end|>", pad_token="<|endoftext|>")


def test_prompts_keep_their_own_records(tokenizer, tmp_path, capsys):
    """Where one between them is too long."""
    asked = ["short one", "word " * 90, "another", "the last"]
    write_jsonl(tmp_path / "prompts.jsonl", [{"instruction": x, "input": ""} for x in asked])
    file = str(tmp_path / "prompts.jsonl")
    page = tiny_farm.settings("ppo", tmp_path, **{"data.train": file, "data.eval": file})
    split = encoded_rows.prompts(page.data, tokenizer, 0, "")
    kept = [asked[i] for i in (0, 2, 3)]
    for found, records in ((split.train, split.train_rows), (split.eval, split.eval_rows)):
        assert [record["instruction"] for record in records] == kept
        texts = [tokenizer.decode(ids) for ids in np.split(found.tokens, found.offsets[1:-1])]
        assert all(said in text for said, text in zip(kept, texts, strict=True))


def test_rows_are_held_out_with_the_seed(tokenizer, tmp_path, capsys):
    rows = [{"instruction": f"Say {i}.", "input": "", "output": "word"} for i in range(60)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    page = tiny_farm.settings(
        "sft", tmp_path, **{"data.train": str(tmp_path / "rows.jsonl"), "data.eval": ""}
    )
    held = [encoded_rows.instructions(page.data, tokenizer, seed, "").eval_rows for seed in (3, 3, 4)]
    assert held[0] == held[1] != held[2] and len(held[2]) == 12
