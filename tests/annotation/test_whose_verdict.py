"""Numbers and names that are not the judge's verdict: of others, of no case at hand, of another scale or order."""

import pytest
from annotation_helpers import check_reading, read

from rlhf_jax.annotation.parsing.parsers import ParserSpec

SEVEN = ParserSpec("rating", low=1, high=7)
TEN = ParserSpec("rating", low=1, high=10)
BOTH = ParserSpec("ratings", low=1, high=7, aspects=("Relevance", "Clarity"))
JSON, ORDER, SENTENCE = ParserSpec("cot_json"), ParserSpec("order"), ParserSpec("sentence")

HYPOTHETICAL = [
    (SEVEN, "A rating of 7 would be too generous; I give 4.", None),
    (SEVEN, "If it had cited sources, I would give it a 7.", None),
    (SEVEN, "A perfect score: 7 requires citations.", None),
    (SEVEN, "The rating 7 means excellent. This response is poor.", None),
    (SEVEN, "The other response deserves a 6.", None),
    (SEVEN, 'For example {"rating": 7} would be for a perfect answer. Rating: 3', None),
    (TEN, "9/10 dentists agree", None),
    (TEN, "I deduct 2/10", None),
    (TEN, "It is far from 10/10", None),
    (TEN, "10/10 would be perfect; this is poor", None),
    (TEN, "A solid 8/10 response.", 8),
    (TEN, "It earns 9/10 because it is clear.", 9),
    (TEN, "Overall 9/10, clear and short.", 9),
    (SEVEN, "If I had to rate it, I'd give it a 5.", 5),
    (SEVEN, "I'm not sure if it is right, but I'd give it a 5.", 5),
    (SEVEN, "A rating of 5 would be appropriate.", 5),
    (SEVEN, "I give it a perfect score: 7.", 7),
    (SEVEN, "If it had sources, it would be better. Rating: 4", 4),
    (SEVEN, "Rating: 4 ½", None),
    (BOTH, "Relevance: 4 ½\nClarity: 3", None),
    (SEVEN, "Rating: 5 minus 1", None),
    (SEVEN, "Rating: > 5", None),
    (SEVEN, "Clarity rating: 6\nOverall: 3", 3),
    (SEVEN, "Overall: 6/7. Final: 5", None),
    (SEVEN, "Rating: 5\nOverall: 3 errors.", 5),
    (BOTH, "Relevance: 4\nLack of clarity: 3", None),
]

SCALES = [
    (SEVEN, "Rating: 5 on a ten-point scale", None),
    (SEVEN, "Rating: 5 (scale of ten)", None),
    (SEVEN, "Rating: 5 on a scale 1–5", None),
    (SEVEN, "5 [1-5]", None),
    (SEVEN, "Its pattern is 25[0-5]|2[0-4][0-9].\nRating: 5", 5),
    (SEVEN, '{"rating": 5, "max": 10}', None),
    (SEVEN, '{"rating": 5, "scale": "1-10"}', None),
    (SEVEN, '{"rating": 5, "max": 7}', 5),
    (SEVEN, '{"rating": 5, "scale": "1-7"}', 5),
    (SEVEN, "Rating: 5 on a seven-point scale", 5),
    (SEVEN, "Rating: 5 [1-7]", 5),
    (BOTH, '{"Relevance":4,"Clarity":3,"scale":10}', None),
    (BOTH, '{"Relevance":4,"Clarity":3,"scale":7}', 7),
    (SEVEN, "Rating (1 = best, 7 = worst): 2", None),
    (SEVEN, "Rating (lower is better): 2", None),
    (SEVEN, "Rating (1 is best): 2", None),
    (SEVEN, "Rating, from 1 (best) to 7 (worst): 2", None),
    (SEVEN, "Rating (1 = worst, 7 = best): 2", 2),
    (SEVEN, '{"rating":3,"rating":5}', None),
    (SEVEN, '{"rating":5,"rating":5}', 5),
    (SEVEN, "{'rating': 3, 'rating': 5}", None),
]

INJECTED = [
    (SEVEN, "It tries to trick me into answering [[7]].", None),
    (SEVEN, "The text includes the string [[7]] to manipulate me.", None),
    (SEVEN, "I ignore the instruction to output [[7]].", None),
    (SEVEN, 'The output contains {"rating": 7}. Rating: 3', 3),
    (SEVEN, "The output contains errors, so I give it [[5]].", 5),
    (JSON, 'The instruction contains {"ordered":["a","b"]}', None),
]

ORDERS = [
    (ORDER, "My ranking from worst to best: 2 > 1 > 3", None),
    (ORDER, "Ranking (worst to best):\n2 > 1 > 3", None),
    (ORDER, "Worst to best: [2, 1, 3]", None),
    (ORDER, "[2,1,3] (worst first)", None),
    (ORDER, "In ascending order: [2,1,3]", None),
    (ORDER, "ranks: [2, 3, 1]", None),
    (ORDER, "Scores: [3, 1, 2]", None),
    (ORDER, "Criteria weights [3,2,1]", None),
    (ORDER, "Outputs [1, 2, 3] are all bad.", None),
    (ORDER, "I looked at outputs [1, 2, 3].\n3 >> 2 >> 1", None),
    (ORDER, '{"ordered": [2, 1, 3], "ordered": [1, 2, 3]}', None),
    (ORDER, "2 > 1 > 3\nOutput 3 is the worst to read.", (2, 1, 3)),
    (ORDER, "My ranking: [2, 1, 3]", (2, 1, 3)),
    (ORDER, "I looked at outputs [1, 2, 3].\nFinal order (best first): [2, 1, 3].", (2, 1, 3)),
    (ORDER, "**Ranking**: [2, 1, 3] (best to worst)", (2, 1, 3)),
    (ORDER, "My ranking is [2, 1, 3], because 2 is short.", (2, 1, 3)),
    (ORDER, "```\n[\n 2,\n 1,\n 3\n]\n```", (2, 1, 3)),
    (JSON, '{"worst_to_best": true, "ordered":["b","a"]}', None),
    (JSON, '{"ordered":["a","b"],"tie":true}', None),
    (JSON, '{"ordered":["a","b"],"tie":false}', 1),
    (JSON, '{"ordered":["a","b"],"ordered":["b","a"]}', None),
    (JSON, '{"ordered":["a","b"],"ordered":["a","b"]}', 1),
    (JSON, '{"Ordered":["a","b"],"ordered":["b","a"]}', None),
]

PHRASES = [
    (SENTENCE, "Worst:\nOutput (a)", None),
    (SENTENCE, "Loser:\n**Output (a)**", None),
    (SENTENCE, "Rejected:\nOutput (a)", None),
    (SENTENCE, "The less preferred output is:\nOutput (a)", None),
    (SENTENCE, "The less preferred output is: Output (a)", None),
    (SENTENCE, "Tie.\nOutput (a)", None),
    (SENTENCE, "Neither\nOutput (a)", None),
    (SENTENCE, "Which is the worst output? Output (a)", None),
    (SENTENCE, "Best:\nOutput (a)", 1),
    (SENTENCE, "Not offensive.\nOutput (a)", 1),
    (SENTENCE, "The other is less clear, so the best is:\nOutput (a)", 1),
    (SENTENCE, "Which output is better? Output (a)", 1),
    (SENTENCE, "Output (b) is worse.\nOutput (a)", 1),
    (SENTENCE, "Output (a) is far from the best", None),
    (SENTENCE, "Output (a) is hardly better", None),
    (SENTENCE, "Output (a) is better only superficially", None),
    (SENTENCE, "I doubt Output (a) is better", None),
    (SENTENCE, "I can't say that Output (a) is better", None),
    (SENTENCE, "My verdict is the opposite of Output (a)", None),
    (SENTENCE, "Output (a) is more harmful", None),
    (SENTENCE, "Output (a) is more confusing", None),
    (SENTENCE, "Output (a) makes more mistakes", None),
    (SENTENCE, "Output (a) was chosen at random, I have no preference", None),
    (SENTENCE, "Output (a) is more helpful", 1),
    (SENTENCE, "There is no doubt that Output (a) is better", 1),
    (ParserSpec("choice"), "Worst:\nOutput (a)\nOutput (b)", None),
]


@pytest.mark.parametrize(("spec", "text", "wanted"), HYPOTHETICAL + SCALES + INJECTED)
def test_numbers_that_are_no_rating(spec: ParserSpec, text: str, wanted: object) -> None:
    parsed = read(spec, text)
    if spec is JSON:
        assert parsed.preference is None
    elif wanted is None:
        assert parsed.rating is None and parsed.status != "ok" and parsed.detail
    else:
        check_reading(parsed, wanted, "rating")


@pytest.mark.parametrize(("spec", "text", "wanted"), ORDERS + PHRASES)
def test_orders_and_names_that_are_no_verdict(spec: ParserSpec, text: str, wanted: object) -> None:
    check_reading(read(spec, text), wanted, "ranks" if spec is ORDER else "preference")


def test_criteria_cut_off_at_their_last_number() -> None:
    ten = ParserSpec("ratings", low=1, high=10, aspects=("Relevance", "Clarity"))
    assert read(ten, "Relevance: 4\nClarity: 1", "length").status == "truncated"
    assert read(ten, "Relevance: 4\nClarity: 2", "length").rating == 6
    assert read(ten, '{"Relevance": 4, "Clarity": 1}', "length").rating == 5
