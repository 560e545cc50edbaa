"""`annotate_samples`: explode, drop repeats, derange within the prompt."""

from collections import Counter

import pytest
from annotation_fake_server import FakeServer
from annotation_helpers import judge_spec, pool_of

from rlhf_jax.annotation import annotate_samples, pair_samples
from rlhf_jax.errors import UserError


def test_all_pairs_are_a_derangement_of_the_distinct_outputs() -> None:
    rows = [{"instruction": f"p{i}", "input": "", "output": ["a", "b", "c", "b", "a"]} for i in range(50)]
    pairs, counts = pair_samples(rows, one_pair_per_prompt=False)
    assert len(pairs) == 150
    for i in range(50):
        mine = [pair for pair in pairs if pair["instruction"] == f"p{i}"]
        assert [pair["output_1"] for pair in mine] == ["a", "b", "c"]
        assert sorted(pair["output_2"] for pair in mine) == ["a", "b", "c"]
        assert all(pair["output_1"] != pair["output_2"] for pair in mine)
    assert counts == {"prompts": 50, "samples": 250, "repeated_samples": 100, "prompts_without_pair": 0}


def test_one_pair_per_prompt_is_the_rule_and_the_seed_chooses_it() -> None:
    rows = [{"instruction": f"p{i}", "output": ["a", "b", "c"], "split": "train"} for i in range(100)]
    pairs, _ = pair_samples(rows)
    assert [pair["instruction"] for pair in pairs] == [row["instruction"] for row in rows]
    assert Counter(pair["output_2"] for pair in pairs).keys() == {"b", "c"}
    assert pairs[0].keys() == {"sample_id", "instruction", "input", "split", "output_1", "output_2"}
    assert pair_samples(rows)[0] == pairs
    assert pair_samples(rows, seed=1)[0] != pairs


def test_single_outputs_of_one_prompt_belong_together_and_inputs_keep_prompts_apart() -> None:
    rows = [
        {"instruction": "p", "input": "", "output": "a"},
        {"instruction": "p", "input": "x", "output": "b"},
        {"instruction": "p", "input": None, "output": "c"},
    ]
    pairs, counts = pair_samples(rows, one_pair_per_prompt=False)
    assert [(pair["input"], pair["output_1"], pair["output_2"]) for pair in pairs] == [
        ("", "a", "c"),
        ("", "c", "a"),
    ]
    assert counts["prompts_without_pair"] == 1


def test_annotated_samples_carry_the_counts() -> None:
    rows = [{"instruction": f"p{i}", "output": ["a", "b"]} for i in range(10)] + [
        {"instruction": "q", "output": ["a"]}
    ]
    with FakeServer() as server:
        labelled, summary = annotate_samples(
            rows, pool_of(judge_spec()), base_urls={"local": server.url}, seed=3
        )
    assert len(labelled) == 10 and {row["seed"] for row in labelled} == {3}
    assert summary["prompts_without_pair"] == 1 and summary["status"] == {"ok": 10}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"instruction": "p"}], r"rows\[0\]: output: missing"),
        ([{"instruction": "p", "output": ["a", 3]}], r"rows\[0\]: output: found 3"),
        ([{"instruction": "p", "output": ["a", "a"]}], "two different outputs"),
    ],
)
def test_what_cannot_be_paired_is_named(rows: list, words: str) -> None:
    with pytest.raises(UserError, match=words):
        annotate_samples(rows, pool_of(judge_spec()), base_urls={"local": "http://127.0.0.1:9"})
