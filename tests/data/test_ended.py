"""Responses that their sampler cut: known from generate to training, and without an end token wherever they go."""

from collections import Counter

import pytest
from chat_tokenizers import TOKENIZERS

from rlhf_jax.annotation.formats import read_feedback, write_feedback
from rlhf_jax.annotation.kinds.head2head import join_outputs
from rlhf_jax.annotation.kinds.pairs import pair_samples
from rlhf_jax.annotation.kinds.ratings_and_rankings import _exploded, all_pairs
from rlhf_jax.annotation.labels.expansion import pairs_of
from rlhf_jax.annotation.labels.labels_file import read_labels, write_labels
from rlhf_jax.data.records.records import read_instructions, read_pairs
from rlhf_jax.data.templates import Handling
from rlhf_jax.data.tokenization import encode_pairs, encode_sft
from rlhf_jax.errors import UserError

PROMPT = {"instruction": "the cat", "input": ""}
CASES = [(style, template) for style in ("llama3", "chatml", "mistral") for template in ("brief", "chat")]


def last_tokens(found):
    return [int(found[i][-1]) for i in range(len(found))]


@pytest.mark.parametrize(("style", "template"), CASES)
def test_what_did_not_end_has_no_end_token(style, template):
    tokenizer = TOKENIZERS[style]
    rows = [PROMPT | {"output": "sat on the mat"} | flag for flag in ({}, {"ended": True}, {"ended": False})]
    rows, skipped = read_instructions(rows, chat=template == "chat")
    assert not skipped and [row.get("ended") for row in rows] == [None, None, False]
    found, counts = encode_sft(rows, tokenizer, template, 99)
    assert counts == Counter({"response did not end (row kept, no end token)": 1})
    whole, same, cut = (found[i].tolist() for i in range(3))
    assert whole == same == [*cut, tokenizer.eos_token_id]
    dropped, counts = encode_sft(rows, tokenizer, template, 99, Handling(not_ended="drop"))
    assert len(dropped) == 2 and counts == Counter({"response did not end": 1})


@pytest.mark.parametrize(("style", "template"), CASES)
def test_each_side_of_a_pair_is_looked_at_alone(style, template):
    tokenizer, eos = TOKENIZERS[style], TOKENIZERS[style].eos_token_id
    sides = {"output_1": "sat on", "output_2": "the mat", "ended_1": False, "ended_2": True}
    layouts = [
        PROMPT | sides | {"preference": 1.0},
        PROMPT | sides | {"preference": 2.0},
    ]
    rows, _ = read_pairs(layouts, chat=template == "chat")
    pairs, counts = encode_pairs(rows, tokenizer, template, 99)
    assert counts == Counter({"response did not end (row kept, no end token)": 2})
    assert [token == eos for token in last_tokens(pairs.chosen)] == [False, True]
    assert [token == eos for token in last_tokens(pairs.rejected)] == [True, False]
    explicit = [{"prompt": "p", "chosen": "sat on", "rejected": "the mat", "rejected_ended": False}, rows[1]]
    rows, _ = read_pairs(explicit, chat=template == "chat")
    pairs, _ = encode_pairs(rows, tokenizer, template, 99)
    assert [token == eos for token in last_tokens(pairs.rejected)] == [False, False]
    with pytest.raises(UserError, match="response did not end 2"):
        encode_pairs(rows, tokenizer, template, 99, Handling(not_ended="drop"))


def test_a_word_for_a_flag_is_counted():
    rows = [PROMPT | {"output": "a", "ended": flag} for flag in ("no", True)]
    assert read_instructions(rows)[1] == Counter({"ended is neither true nor false": 1})


SAMPLES = [PROMPT | {"outputs": ["a", "b", "c", "a"], "ended": [False, True, False, True]}]


def test_pairs_of_samples_know_it():
    """Of two equal texts one ended, so the text is whole."""
    whole = {"a": True, "b": True, "c": False}
    pairs, _ = pair_samples(SAMPLES, one_pair_per_prompt=False)
    assert len(pairs) == 3 and "ended" not in pairs[0]
    for pair in pairs:
        assert (pair["ended_1"], pair["ended_2"]) == (whole[pair["output_1"]], whole[pair["output_2"]])
    told = {(p["sample_1"], p["sample_2"]): (p["ended_1"], p["ended_2"]) for p in all_pairs(SAMPLES)}
    assert told[0, 1] == told[2, 3] == (False, True) and told[1, 2] == (True, False)
    with pytest.raises(
        UserError, match=r"rows\[0\]: ended: found \[True\]; give true or false for each of 2"
    ):
        pair_samples([PROMPT | {"outputs": ["a", "b"], "ended": [True]}])
    plain, _ = pair_samples([PROMPT | {"outputs": ["a", "b"]}])
    assert not {"ended", "ended_1"} & set(plain[0])


def test_ratings_rankings_and_two_models_know_it():
    assert [row["ended"] for row in _exploded(SAMPLES[0], 0)] == SAMPLES[0]["ended"]
    (pair,), _ = join_outputs(
        [PROMPT | {"output": "a", "ended": True}], [PROMPT | {"output": "b", "ended": True}]
    )
    assert (pair["ended_1"], pair["ended_2"]) == (True, True)
    common = {"kind": "rating", "status": "ok", "judge_id": "j"}
    rated = [
        PROMPT | common | {"output": o, "rating": r, "ended": e}
        for o, r, e in (("a", 2.0, False), ("b", 5.0, True))
    ]
    completions = [{"output": o, "rank": k, "ended": e} for o, k, e in (("a", 2, False), ("b", 1, True))]
    ranked = [PROMPT | {"kind": "ranking", "status": "ok", "completions": completions}]
    for rows in (rated, ranked):
        (pair,) = pairs_of(rows)
        assert (pair["output_1"], pair["ended_1"], pair["ended_2"]) == ("a", False, True)


def test_labels_and_other_projects_files_keep_it(tmp_path):
    row = {"kind": "pairwise", "status": "ok", "preference": 2.0, "output_1": "a", "output_2": "b"}
    rows = [PROMPT | row | {"ended_1": False, "ended_2": True}]
    write_labels(tmp_path / "labels.parquet", rows, {})
    (read,) = read_labels(tmp_path / "labels.parquet").rows
    assert (read["ended_1"], read["ended_2"]) == (False, True)
    for name, suffix in (("alpaca_farm", ".json"), ("trl", ".jsonl"), ("trl_conversational", ".jsonl")):
        path = tmp_path / f"feedback{suffix}"
        write_feedback(path, rows, name)
        ((pair,), _) = read_pairs(path)
        assert (pair["chosen"], pair.get("chosen_ended"), pair["rejected_ended"]) == ("b", None, False)
        (again,) = read_feedback(path, name)
        assert again["ended_2" if again["output_2"] == "a" else "ended_1"] is False
