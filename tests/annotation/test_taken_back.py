"""Verdicts that a judge takes back, denies or turns around further on: unreadable, never the first of two."""

import pytest
from annotation_helpers import check_reading, read

from rlhf_jax.annotation.answers.answers import Answer
from rlhf_jax.annotation.parsing.parsers import ParserSpec, parse_all

SEVEN = ParserSpec("rating", low=1, high=7)
JSON = ParserSpec("cot_json")
MODELS = ParserSpec("ranking", ("model_1",), ("model_2",))
ORDER = ParserSpec("order")
BOTH = ParserSpec("ratings", low=1, high=10, aspects=("Relevance", "Clarity"))
LETTERS = ParserSpec("regex", patterns=(r"\[\[A\]\]", r"\[\[B\]\]"))
SENTENCE = ParserSpec("sentence")

A_FIRST, B_FIRST = '{"ordered":["a","b"]}', '{"ordered":["b","a"]}'
FIRST = "[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]"
SECOND = "[{'model': 'model_2', 'rank': 1}, {'model': 'model_1', 'rank': 2}]"
FOURS, ONES = '{"Relevance":4,"Clarity":4}', '{"Relevance":1,"Clarity":1}'
COLUMN = {"order": "ranks", "rating": "rating", "ratings": "rating"}

# (parser, answer, what it says; None where no single verdict is left)
TURNED = [
    (JSON, f"{A_FIRST} wait, no: {B_FIRST}", None),
    (JSON, f"{A_FIRST}\nActually the second is better.", None),
    (JSON, f"{A_FIRST}\nHmm, I meant the reverse.", None),
    (JSON, f"{A_FIRST}\n\nThe first has an actual source; the second offers a correction of it.", 1),
    (JSON, f"I would not say {B_FIRST}.\n{A_FIRST}", 1),
    (JSON, '{"explanation": "Wait, no: b is the reverse", "ordered": ["a", "b"]}', 1),
    (MODELS, f"{FIRST}\nNo wait: {SECOND}", None),
    (MODELS, f"{FIRST}\nCorrection: the reverse.", None),
    (MODELS, f"The reverse of {FIRST}", None),
    (MODELS, f"The opposite of {FIRST}", None),
    (MODELS, f"{FIRST}\nNo output is perfect.", 1),
    (ORDER, "[2,1,3]\nNo wait: [1,2,3]", None),
    (ORDER, "2 > 1 > 3\nNo wait: 1 > 2 > 3", None),
    (ORDER, "2 > 1 > 3\nEdit: swap the first two.", None),
    (ORDER, "[2,1,3]\nNo other order is right.", (2, 1, 3)),
    (BOTH, f"{FOURS}\nNo wait: {ONES}", None),
    (BOTH, f"{FOURS}\n{FOURS}", 8),
    (SEVEN, "Rating: 6\nNo - overall rating: 4", None),
    (SEVEN, "Rating: 6 -> 4", None),
    (SEVEN, "Rating: 6 → 4", None),
    (SEVEN, "Rating: 6\nNo, 4.", None),
    (SEVEN, "Rating: 6\nEdit: 4", None),
    (SEVEN, "Rating: 6 (no, 4)", None),
    (SEVEN, "6. Sorry, I meant 4.", None),
    (SEVEN, "Initial rating: 6. After reconsideration, 4.", None),
    (SEVEN, "[[6]] hmm, I revise this to 4.", None),
    (SEVEN, "Rating: 6\nScrap that: 4", None),
    (SEVEN, "Rating: 5 - strike that - Rating should be 3", None),
    (SEVEN, "Rating: 6\nNo, it has 4 errors.", 6),
    (SEVEN, "Rating: 6\nNo. 4 of the list is missing.", 6),
    (SEVEN, "Rating: 6\nIt was revised 3 times.", 6),
    (BOTH, "Relevance: 4 -> 3\nClarity: 4", None),
    (BOTH, "Relevance: 4\nClarity: 4\n\nWait, Clarity should be 5", None),
    (BOTH, "Relevance: 4\nClarity: 4\nActually, relevance 2.", None),
    (BOTH, "Relevance: 4\nClarity: 4\nActually, it has 2 errors.", 8),
    (LETTERS, "[[A]] is wrong", None),
    (LETTERS, "[[A]] would be wrong.", None),
    (LETTERS, "[[A]] is tempting, but no.", None),
    (LETTERS, "~~[[A]]~~", None),
    (LETTERS, "~~[[A]]~~ [[B]]", 2),
    (LETTERS, "[[A]]\nHmm, no, the second one.", None),
    (LETTERS, "[[A]] is right", 1),
    (LETTERS, "[[A]]\nIt changed my life.", 1),
    (SENTENCE, "Output (a) is better. Hmm, no. I change my verdict.", None),
    (SENTENCE, "Output (a) is better? No.", None),
]


@pytest.mark.parametrize(("spec", "text", "wanted"), TURNED)
def test_what_is_taken_back_is_no_verdict(spec: ParserSpec, text: str, wanted: object) -> None:
    check_reading(read(spec, text), wanted, COLUMN.get(spec.name, "preference"))


def test_a_correction_of_one_example_leaves_none_of_the_request() -> None:
    text = "Example 1: 5\nExample 2: 6\n"
    assert [one.rating for one in parse_all(Answer(text), SEVEN, 2)] == [5, 6]
    for words in ("Actually, example 1 deserves a 3.", "Wait, 4 for the second.", "Edit: example 2 is a 4."):
        assert [one.rating for one in parse_all(Answer(text + words), SEVEN, 2)] == [None] * 2
    told = parse_all(Answer(f"{A_FIRST}\n{A_FIRST}\nNo wait: {B_FIRST}"), JSON, 2)
    assert [one.preference for one in told] == [None] * 2
