"""Several examples in one request: the number beside a verdict says whose it is, not the order of the verdicts."""

import pytest

from rlhf_jax.annotation.answers.answers import Answer
from rlhf_jax.annotation.parsing.parsers import ParserSpec, parse_all

LETTERS = ParserSpec("regex", patterns=(r"\[\[A\]\]", r"\[\[B\]\]"))
LINES = ParserSpec("regex", patterns=(r"(?:^|\n) ?Output \(a\)", r"(?:^|\n) ?Output \(b\)"))
JSON, RANKING, SENTENCE = ParserSpec("cot_json"), ParserSpec("ranking"), ParserSpec("sentence")
BOTH = ParserSpec("ratings", low=1, high=10, aspects=("Relevance", "Clarity"))

A_FIRST, B_FIRST = '{"ordered":["a","b"]}', '{"ordered":["b","a"]}'
FIRST = "[{'model': 'a', 'rank': 1}, {'model': 'b', 'rank': 2}]"
SECOND = "[{'model': 'b', 'rank': 1}, {'model': 'a', 'rank': 2}]"
NEITHER = [None, None]

# (parser, answer to two examples, preferences or ratings in their order)
NUMBERED = [
    (LETTERS, "Example 2: [[A]]\nExample 1: [[B]]", [2, 1]),
    (LETTERS, "Example 1: [[A]]\nExample 2: [[B]]", [1, 2]),
    (LETTERS, "Example 2: [[A]]; Example 1: [[B]]", [2, 1]),
    (LETTERS, "2. [[A]]\n1. [[B]]", [2, 1]),
    (LETTERS, "Example 2: [[A]]\nExample 3: [[B]]", NEITHER),
    (LETTERS, "Example 1: [[A]]\nExample 1: [[B]]", NEITHER),
    (LETTERS, "[[A]]\n[[B]]", [1, 2]),
    (LINES, "## Example 2\nOutput (a)\n## Example 1\nOutput (b)", [2, 1]),
    (LINES, "**Example 2:**\nOutput (a)\n\n**Example 1:**\nOutput (b)", [2, 1]),
    (JSON, f"Example 2: {A_FIRST}\nExample 1: {B_FIRST}", [2, 1]),
    (JSON, f"Example 2:\n{A_FIRST}\nExample 1:\n{B_FIRST}", [2, 1]),
    (JSON, '{"example":2,"ordered":["a","b"]}\n{"example":1,"ordered":["b","a"]}', [2, 1]),
    (JSON, '[{"id":"2","ordered":["a","b"]},{"id":"1","ordered":["b","a"]}]', [2, 1]),
    (JSON, '{"index":1,"ordered":["a","b"]}\n{"index":0,"ordered":["b","a"]}', [2, 1]),
    (JSON, '{"example":1,"ordered":["a","b"]}\n{"example":1,"ordered":["b","a"]}', NEITHER),
    (JSON, '{"example_2":{"ordered":["a","b"]},"example_1":{"ordered":["b","a"]}}', [2, 1]),
    (JSON, f"Both are short.\n1. It is clear.\n2. It is kind.\n{A_FIRST}\n{B_FIRST}", [1, 2]),
    (RANKING, f"Example 2: {FIRST}\nExample 1: {SECOND}", [2, 1]),
    (RANKING, f"1. {FIRST}\n2. {SECOND}", [1, 2]),
    (BOTH, "Example 2:\nRelevance: 1\nClarity: 2\nExample 1:\nRelevance: 8\nClarity: 9", [17, 3]),
    (BOTH, "Example 2: Relevance: 1, Clarity: 2\nExample 1: Relevance: 8, Clarity: 9", [17, 3]),
    (BOTH, "2. Relevance: 1; Clarity: 2\n1. Relevance: 8; Clarity: 9", [17, 3]),
    (BOTH, "Example 2:\nRelevance: 1\nClarity: 2\nExample 3:\nRelevance: 8\nClarity: 9", NEITHER),
    (BOTH, "1. Relevance: 1\n2. Clarity: 2\n\n1. Relevance: 8\n2. Clarity: 9", [3, 17]),
    (BOTH, '{"example_2":{"Relevance":1,"Clarity":2},"example_1":{"Relevance":8,"Clarity":9}}', [17, 3]),
    (BOTH, '{"results":[{"id":2,"Relevance":1,"Clarity":2},{"id":1,"Relevance":8,"Clarity":9}]}', [17, 3]),
    (BOTH, '{"Relevance":1,"Clarity":2}\n{"Relevance":8,"Clarity":9}', [3, 17]),
    (SENTENCE, "Example 1: Output (a) is not the best.\nExample 2: Output (b) is worse.", NEITHER),
    (SENTENCE, "1. I reject Output (a)\n2. Output (b)", NEITHER),
    (SENTENCE, "1. Output (a) is better.\n2. Output (b), because it is short.", [1, 2]),
]


@pytest.mark.parametrize(("spec", "text", "wanted"), NUMBERED)
def test_numbers_say_whose_verdicts_they_are(spec: ParserSpec, text: str, wanted: list) -> None:
    parsed = parse_all(Answer(text), spec, 2)
    assert [one.rating if spec is BOTH else one.preference for one in parsed] == wanted
    assert {one.status for one in parsed} == {"parse_error" if wanted == NEITHER else "ok"}


def test_a_number_beside_the_only_example_says_nothing() -> None:
    assert parse_all(Answer('{"id": 17, "ordered": ["b", "a"]}'), JSON)[0].preference == 2
    assert parse_all(Answer(f"Example 3:\n{A_FIRST}"), JSON)[0].preference == 1


def test_explanations_go_with_their_verdicts() -> None:
    text = "\n".join(f'{{"example":{i},"explanation":"of {i}","ordered":["a","b"]}}' for i in (2, 1))
    assert [one.explanation for one in parse_all(Answer(text), JSON, 2)] == ["of 1", "of 2"]
