"""What judges really write: each answer is read as a careful reader would, or is a status."""

import pytest
from annotation_helpers import REFUSED, check_reading, read

from rlhf_jax.annotation.answers.answers import Answer
from rlhf_jax.annotation.parsing.parsers import ParserSpec, parse_all

SEVEN = ParserSpec("rating", low=1, high=7)
TEN = ParserSpec("rating", low=1, high=10)
HUNDRED = ParserSpec("rating", low=0, high=100)
FIVE = ParserSpec("rating", low=1, high=5, whole=False)
REGEX = ParserSpec("regex", patterns=(r"(?:^|\n) ?Output \(a\)", r"(?:^|\n) ?Output \(b\)"))
SCORES = ParserSpec("two_scores", low=1, high=10)

# (scale, answer, the rating; None where no single one is meant; refused)
RATINGS = [
    (SEVEN, "Rating:\n5", 5),
    (SEVEN, "Rating (1-10): 5", None),
    (SEVEN, "Rating: 5 on a 1-10 scale", None),
    (SEVEN, "On a scale of 1 to 10, I'd give it a 5", None),
    (SEVEN, "Rating: 5 (on a scale of 10)", None),
    (SEVEN, "Rating: 5 on a scale of 1-7", 5),
    (SEVEN, "Rating: 5\n\nI am sorry, but the output is poor.", 5),
    (SEVEN, "I'm sorry, this is too violent for me.", REFUSED),
    (SEVEN, "5/7", 5),
    (SEVEN, "3/5", None),
    (SEVEN, "I'd give it a 5 out of 7", 5),
    (SEVEN, "I'd give it a 5 out of 7.", 5),
    (SEVEN, "**5**", 5),
    (SEVEN, "Rating: five", 5),
    (SEVEN, "5.5", None),
    (TEN, "[[8]]", 8),
    (SEVEN, "4 (out of 7)", 4),
    (SEVEN, "5,5", None),
    (SEVEN, "5,0", 5),
    (SEVEN, "1,000", None),
    (SEVEN, "-3", None),
    (SEVEN, "Rating: -3", None),
    (SEVEN, "-5", None),
    (SEVEN, "70%", None),
    (HUNDRED, "70%", 70),
    (HUNDRED, "Rating: 70 %", 70),
    (SEVEN, "5th", None),
    (SEVEN, "Rating: 5th", None),
    (SEVEN, "1. The output is accurate.\n2. It is clear.", None),
    (SEVEN, "2024-05-01", None),
    (SEVEN, "5/7/2024", None),
    (SEVEN, "Rating: ５", 5),
    (SEVEN, "５", 5),
    (SEVEN, "Rating： 5", 5),
    (SEVEN, "٥", 5),
    (SEVEN, "Rating: **5**", 5),
    (SEVEN, "**Rating:** 5", 5),
    (SEVEN, "**Rating**: 5", 5),
    (SEVEN, "__Rating__: 5", 5),
    (SEVEN, "## Rating: 5", 5),
    (SEVEN, "`5`", 5),
    (SEVEN, '"5"', 5),
    (SEVEN, '{"rating": 5}', 5),
    (SEVEN, '```json\n{"rating": 5}\n```', 5),
    (SEVEN, '{"rating": "5"}', 5),
    (SEVEN, '{"rating": 5, "explanation": "Rating: 3"}', 5),
    (SEVEN, '{"rating": true}', None),
    (SEVEN, '{"rating": NaN}', None),
    (SEVEN, "<rating>5</rating>", 5),
    (SEVEN, "Score (out of 7): 5", 5),
    (SEVEN, "Score: 5 (out of 7)", 5),
    (SEVEN, "Rating: 5 stars", 5),
    (SEVEN, "5 stars", 5),
    (SEVEN, "6 stars out of 10", None),
    (SEVEN, "6 stars out of 7", 6),
    (SEVEN, "Rating: 3-4", None),
    (SEVEN, "Rating: 3 - 4", None),
    (SEVEN, "3–4", None),
    (SEVEN, "3 to 4", None),
    (SEVEN, "between 3 and 4", None),
    (SEVEN, "On a scale of 1 to 7, I rate this response a 5.", 5),
    (SEVEN, "On a scale from 1 (worst) to 7 (best): 5", 5),
    (SEVEN, "On a scale of 1 to 7, I would give it a 5", 5),
    (SEVEN, "Rating: 1-7", None),
    (SEVEN, "Rating (1 to 7): 5", 5),
    (SEVEN, "Rating (from 1 to 7, 7 being best): 5", 5),
    (SEVEN, "Accuracy: 6\nCoherence: 5\nOverall rating: 6", 6),
    (SEVEN, "Accuracy rating: 6\nCoherence rating: 5\nOverall rating: 6", 6),
    (SEVEN, "Rating: 5\nFinal rating: 6", 6),
    (SEVEN, "Rating: 5+", None),
    (SEVEN, "~5", None),
    (SEVEN, "about 5", None),
    (SEVEN, ">5", None),
    (SEVEN, "Rating: at least 5", None),
    (SEVEN, "5?", None),
    (SEVEN, "Rating: 5!", 5),
    (SEVEN, "5.", 5),
    (SEVEN, "5.0", 5),
    (SEVEN, "5.0/7.0", 5),
    (SEVEN, "1e3", None),
    (SEVEN, "0x5", None),
    (SEVEN, "I would not give it a 7. Rating: 4", 4),
    (SEVEN, "I wouldn't rate it 7.", None),
    (SEVEN, "If it had sources, I'd give it a 7; as it is I give it a 5.", None),
    (SEVEN, "<think>maybe 3... Rating: 3</think>\n5", 5),
    (SEVEN, "<think>Rating: 3", None),
    (SEVEN, "Rating: 3\n</think>\n\nRating: 5", 5),
    (SEVEN, "<think>\n</think>\n\n5", 5),
    (SEVEN, "5 - accurate and clear", None),
    (SEVEN, "Rating: 5 - accurate and clear", 5),
    (SEVEN, "Rating: 5, because it is accurate", 5),
    (SEVEN, "Rating 5", 5),
    (SEVEN, "Rating is 5", 5),
    (SEVEN, "My rating would be 5.", 5),
    (SEVEN, "The output deserves a 5.", 5),
    (SEVEN, "Rating: 5 out of 10", None),
    (SEVEN, "Rating: 5/10", None),
    (SEVEN, "Rating: 10/10", None),
    (SEVEN, "Rating: 7/7", 7),
    (SEVEN, "[7/7]", 7),
    (SEVEN, "(5)", 5),
    (SEVEN, "Rating: (5)", 5),
    (SEVEN, "Rating: [5]", 5),
    (SEVEN, "Rating: [[5]]", 5),
    (SEVEN, "Bewertung: 5", None),
    (SEVEN, "Rating: 5.5.2024", None),
    (SEVEN, "Rating: 1.000", 1),
    (HUNDRED, "Rating: 85/100", 85),
    (HUNDRED, "0.85", None),
    (SEVEN, "Rating: 5\nRating: 5", 5),
    (SEVEN, "The response contains 3 errors. Rating: 2", 2),
    (SEVEN, "5\n\n1. accurate\n2. coherent\n3. harmless", 5),
    (SEVEN, "5\nIt lists 6 of 7 seasons.", 5),
    (SEVEN, "5\nIt gets 6 of 7 items right.", 5),
    (SEVEN, "Rating: N/A", None),
    (SEVEN, "No rating. 5 is what it asks for.", REFUSED),
    (SEVEN, "I cannot rate this output.", REFUSED),
    (SEVEN, "I'm sorry, but I can't help with that.", REFUSED),
    (SEVEN, "Rating: 5. I cannot give it a higher score because of an error.", 5),
    (SEVEN, "I can't verify it, but rating: 4", 4),
    (SEVEN, 'The output says "Rating: 7" but it is poor. Rating: 2', 2),
    (SEVEN, "The response tells me to rate it 7. Rating: 2", 2),
    (SEVEN, "> Rating: 7\nI refuse.", REFUSED),
    (SEVEN, "Rating: 7, says the output. I decline.", REFUSED),
    (SEVEN, "The user wrote: “Rating: 7”\n\n3", 3),
    (SEVEN, "The output contains: Rating: 7\nMy rating: 2", 2),
    (SEVEN, "½", None),
    (SEVEN, "5½", None),
    (SEVEN, "²", None),
    (SEVEN, "①", None),
    (SEVEN, "V", None),
    (SEVEN, "IV", None),
    (SEVEN, "0", None),
    (SEVEN, "8", None),
    (SEVEN, "77", None),
    (SEVEN, "7 7", None),
    (SEVEN, "Rating: 6.9999", None),
    (FIVE, "4,5", 4.5),
    (FIVE, "4.5/5", 4.5),
    (FIVE, "4.5 von 5", 4.5),
    (FIVE, "Rating: 4½", None),
    (SEVEN, "Score: 5 Points", 5),
    (SEVEN, "I rate it 5/7 overall, not 7/7.", None),
    (SEVEN, "| Rating | 5 |", 5),
    (SEVEN, "Rating = 5", 5),
    (SEVEN, "Rating -> 5", 5),
    (SEVEN, "Rating – 5", 5),
    (SEVEN, "Rating: $5", None),
    (SEVEN, "Rating: #5", None),
    (SEVEN, "Rating: 5 6", None),
    (SEVEN, "Rating: 5;6", None),
    (SEVEN, "Rating: 5, 6", None),
    (SEVEN, "5 / 7", 5),
    (SEVEN, "5 of 7", 5),
    (TEN, "Rating: 1", 1),
    (SEVEN, "Rating: one of the best", None),
    (SEVEN, "Rating: **five** out of seven", 5),
    (SEVEN, "five out of seven", 5),
    (SEVEN, "Five.", 5),
    (SEVEN, "Rating: 12:30", None),
    (SEVEN, "Rating: v5", None),
    (SEVEN, "gpt-4", None),
    (SEVEN, "Rating by gpt-4: 5", None),
    (SEVEN, "Answer: 5", 5),
    (SEVEN, "It is accurate.\n**Final answer:** 5/7", 5),
    (SEVEN, "Answer: 42\nRating: 5", 5),  # The answer to the task that was judged.
    (SEVEN, "It computes 2 + 3.\nThe answer is 5.", None),
    (SEVEN, "The answer is 5.", 5),
    (SEVEN, "I'd say 5.", 5),
    (SEVEN, "It's a 5", 5),
    (SEVEN, "Clear and short.\n\\boxed{5}", 5),
    (SEVEN, "The output gives \\boxed{5}, which is right.", None),
    (SEVEN, "<answer>5</answer>", 5),
    (SEVEN, '{"answer": 5}', 5),
    (SEVEN, "{'rating': 5, 'why': 'it is short'}", 5),
    (SEVEN, '{"why": "short\nand clear", "rating": 5,}', 5),
    (SEVEN, "The output says {'rating': 7}. I refuse to rate it.", REFUSED),
    (SEVEN, "Rating:5", 5),
    (SEVEN, "Rating：５／７", 5),
    (SEVEN, "\ufeff5\u200b", 5),
    (SEVEN, "Rating: 5<|im_end|>", 5),
    (SEVEN, "Rating: 5</s>", 5),
    (SEVEN, "Rating (out of 10): 5", None),
    (SEVEN, "Rating: 5 (max 10)", None),
    (SEVEN, "On a 10-point scale, I rate it 5.", None),
    (SEVEN, "On a 7-point scale, I rate it 5.", 5),
    (SEVEN, "Rating: 5 percent", None),
    (SEVEN, "Rating: 5∕10", None),
    (SEVEN, "Rating: 5|7", None),
    (SEVEN, "Rating: 5 ou 6", None),
    (SEVEN, "Rating: 4〜5", None),
    (SEVEN, "Rating: 5 (maybe 6)", None),
    (SEVEN, "Rating: 5 (five)", 5),
    (SEVEN, "Rating: 5 (six)", None),
    (SEVEN, "Rating: 5. Actually, 6.", None),
    (SEVEN, "Rating: 5\nWait, on reflection: 6", None),
    (SEVEN, "Rating: 5\nActually, it has 6 errors.", 5),
]


@pytest.mark.parametrize(("spec", "text", "wanted"), RATINGS)
def test_ratings(spec: ParserSpec, text: str, wanted: float | str | None) -> None:
    check_reading(read(spec, text), wanted, "rating")


WOMBAT = ParserSpec("ratings", low=1, high=5, aspects=("relevance", "safety"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('relevance: 1\nsafety: 1\n(The output asked me to say {"relevance": 5, "safety": 5}.)', 2),
        ("Relevance (1-5): 4\nSafety (1-5): 3", 7),
        ("Relevance: 4/5\nSafety: 3 out of 5", 7),
        ("| Relevance | 4 |\n| Safety | 3 |", 7),
        ('{"relevance": "4", "safety": "3/5"}', 7),
        ('{"relevance": "4", "safety": "3/10"}', None),
        ("Relevance: 4/10\nSafety: 3/10", None),
        ("Relevance: 3-4\nSafety: 3", None),
        ("Relevance (out of 10): 4\nSafety (out of 10): 3", None),
        ("Relevance (1-10): 4\nSafety (1-10): 3", None),
        ('The output demands {"relevance": 5, "safety": 5}. I refuse to rate it.', REFUSED),
    ],
)
def test_criteria(text: str, wanted: float | str | None) -> None:
    check_reading(read(WOMBAT, text), wanted, "rating")


@pytest.mark.parametrize(
    ("spec", "text", "wanted"),
    [
        (SEVEN, "5", 5),
        (TEN, "1", None),  # It may have been about to say 10.
        (TEN, "Good.\nRating: 1", None),
        (TEN, "2", 2),
        (FIVE, "4", None),  # ... or 4.5.
        (SCORES, "8 1", None),
        (SCORES, "1 8", 2.0),
    ],
)
def test_an_answer_cut_off_at_its_number(spec: ParserSpec, text: str, wanted: float | None) -> None:
    parsed = read(spec, text, "length")
    found = parsed.rating if spec.name == "rating" else parsed.preference
    assert (found, parsed.status) == (wanted, "truncated" if wanted is None else "ok")


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("choice", "Example 2: a\nExample 1: b", [2, 1]),
        ("sentence", "Example 2: Output (a)\nExample 1: Output (b)", [2, 1]),
        ("choice", "1. a\n1. b", [None, None]),
        ("choice", "2. a\n3. b", [None, None]),
    ],
)
def test_numbered_lines_say_whose_they_are(name: str, text: str, wanted: list) -> None:
    assert [one.preference for one in parse_all(Answer(text), ParserSpec(name), 2)] == wanted


def test_ratings_of_numbered_lines() -> None:
    for text, wanted in (
        ("Example 2: 3\nExample 1: 7", [7, 3]),
        ("1. 7\n2. 3", [7, 3]),
        ("3: 7\n4: 3", [None] * 2),
    ):
        assert [one.rating for one in parse_all(Answer(text), SEVEN, 2)] == wanted


def test_thoughts_are_no_part_of_a_completion() -> None:
    parsed = read(ParserSpec("text"), "<think>They greet me.</think>\n\nHello!")
    assert (parsed.text, parsed.explanation, parsed.status) == ("Hello!", "They greet me.", "ok")
    assert read(ParserSpec("text"), "<think>They greet").status == "parse_error"
    assert read(ParserSpec("text"), "Hello!<|im_end|>\n").text == "Hello!"
    assert read(ParserSpec("text"), "It is <s>old</s>").text == "It is <s>old</s>"
    assert read(ParserSpec("text"), "<|begin_of_thought|>Hm.<|end_of_thought|>\nHello!").text == "Hello!"
    assert read(ParserSpec("text"), "Use the <think> tag.").text == "Use the <think> tag."
