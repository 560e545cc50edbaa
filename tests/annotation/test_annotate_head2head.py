"""`annotate_head2head`: the inner join, its counts, and who is the baseline."""

import pytest
from annotation_fake_server import FakeServer, openai_payload
from annotation_helpers import judge_spec, pool_of

from rlhf_jax.annotation import annotate_head2head, join_outputs
from rlhf_jax.annotation.kinds.head2head import join_line
from rlhf_jax.errors import UserError


def outputs(name: str, *prompts: tuple[str, str], **more: object) -> list[dict]:
    return [
        {"instruction": i, "input": x, "output": f"{name} on {i}{x}", "generator": name, **more}
        for i, x in prompts
    ]


def test_the_join_is_on_instruction_and_input_and_counts_what_it_drops() -> None:
    base = outputs("base", ("p", ""), ("p", "x"), ("q", ""), ("only base", ""), dataset="d", note="one")
    model = outputs("model", ("q", ""), ("p", "x"), ("p", ""), dataset="d", note="two")
    pairs, counts = join_outputs(base, model)
    assert [(pair["instruction"], pair["input"]) for pair in pairs] == [("p", ""), ("p", "x"), ("q", "")]
    assert pairs[1] == {
        "instruction": "p",
        "input": "x",
        "output_1": "base on px",
        "output_2": "model on px",
        "generator_1": "base",
        "generator_2": "model",
        "dataset": "d",
        "note_1": "one",
        "note_2": "two",
    }
    assert counts == {"rows_1": 4, "rows_2": 3, "dropped_1": 1, "dropped_2": 0, "repeated": 0}


def test_a_missing_input_is_an_empty_one_and_repeats_meet_in_order() -> None:
    base = [{"instruction": "p", "output": "1"}, {"instruction": "p", "output": "2"}]
    model = [
        {"instruction": "p", "input": "", "output": "3"},
        {"instruction": "p", "input": None, "output": "4"},
    ]
    pairs, counts = join_outputs(base, [*model, model[0]])
    assert [(pair["output_1"], pair["output_2"]) for pair in pairs] == [("1", "3"), ("2", "4")]
    assert (counts["dropped_2"], counts["repeated"]) == (1, 1)


def test_what_has_no_partner_and_what_repeats_is_said() -> None:
    counts = {"rows_1": 10, "rows_2": 4, "dropped_1": 7, "dropped_2": 1, "repeated": 2}
    said = join_line(counts)
    assert "3 pairs" in said and "7 of outputs_1's 10 rows" in said and "1 of outputs_2's 4 rows" in said
    assert "2 pairs repeat a prompt" in said and "equal to the letter" in said
    quiet = join_line(counts | {"dropped_1": 0, "dropped_2": 0, "repeated": 0})
    assert "no partner" not in quiet and "repeat" not in quiet


def test_two_means_the_second_model_is_better() -> None:
    def model_wins(body: dict, nth: int) -> dict:
        return openai_payload("a" if "<output_a>\nmodel" in body["messages"][-1]["content"] else "b")

    prompts = [(f"p{i}", "") for i in range(20)]
    with FakeServer(model_wins) as server:
        rows, summary = annotate_head2head(
            outputs("base", *prompts),
            outputs("model", *prompts[5:]),
            pool_of(judge_spec()),
            base_urls={"local": server.url},
        )
    assert [row["preference"] for row in rows] == [2.0] * 15
    assert (summary["dropped_1"], summary["dropped_2"]) == (5, 0)
    assert rows[0]["generator_1"] == "base"


def test_nothing_in_common_or_no_output_is_named() -> None:
    with pytest.raises(UserError, match="none of its 1 prompts"):
        join_outputs(outputs("a", ("p", "")), outputs("b", ("q", "")))
    with pytest.raises(UserError, match=r"outputs_2\[0\]: output: found None"):
        join_outputs(outputs("a", ("p", "")), [{"instruction": "p"}])
