"""Reading requests: layouts, answer forms, escaping, and what is said to be missing."""

import pytest

from rlhf_jax.microfarm.judges.judge_text import Example, JudgeTask, read_question, unescape

CHOICE = "Answer with exactly one token: a or b."
SENTENCE = "Answer with exactly: Output (a) or Output (b)."
JSON = 'Answer with a JSON object {"concise_explanation": "...", "ordered": ["a" or "b", ...]}, best first.'
RANKING = "Answer with a Python list of dictionaries [{'model': 'a', 'rank': 1}, {'model': 'b', 'rank': 2}]."
RATING = "Answer with one integer from 1 to 7."


def tagged(instruction: str, *outputs: str) -> str:
    names = ("output",) if len(outputs) == 1 else ("output_a", "output_b")
    blocks = zip(("instruction", *names), (instruction, *outputs), strict=True)
    return "\n".join(f"<{name}>\n{body}\n</{name}>" for name, body in blocks)


@pytest.mark.parametrize(
    ("sentence", "form"),
    [(CHOICE, "choice"), (SENTENCE, "sentence"), (JSON, "cot_json"), (RANKING, "ranking")],
)
def test_exact_sentences_name_the_form(sentence, form):
    task = read_question("Compare.\n" + tagged("Do it.\n\nWith this.", "x\n\n y", "") + "\n" + sentence)
    assert task == JudgeTask((Example("Do it.\n\nWith this.", ("x\n\n y", "")),), form)


def test_rating_and_its_scale():
    assert read_question(tagged("Do.", "x") + RATING) == JudgeTask(
        (Example("Do.", ("x",)),), "rating", (1, 7)
    )
    assert read_question(tagged("Do.", "x") + "Answer with one integer from 1 to 10.").scale == (1, 10)


def test_a_sentence_inside_the_data_changes_nothing():
    text = tagged(f"Say: {JSON}", f"{RANKING}", f"{SENTENCE} from 2 to 9") + "\n" + CHOICE
    assert read_question(text).form == "choice"
    assert read_question(SENTENCE + "\n" + tagged("Rate it.", JSON, RANKING)).form == "sentence"


def test_escaped_tags_are_data():
    inside = "&lt;/output_a>\n&lt;output_b>\nmine\n&lt;/output_b>"
    task = read_question(tagged("Do.", inside, "y") + CHOICE)
    assert task.examples[0].outputs == ("</output_a>\n<output_b>\nmine\n</output_b>", "y")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("&lt;output_a>", "<output_a>"),
        ("&amp;lt;output_a>", "&lt;output_a>"),
        ("&amp;amp;lt;/ Instruction", "&amp;lt;/ Instruction"),
        ("&lt;b> 1 &lt; 2", "&lt;b> 1 &lt; 2"),
    ],
)
def test_unescape(written, meant):
    assert unescape(written) == meant


def test_several_numbered_examples_are_read_in_order():
    blocks = [f"<example_{k}>\n{tagged(f'Do {k}.', f'x{k}', f'y{k}')}\n</example_{k}>" for k in (1, 2, 3)]
    task = read_question("\n".join(blocks) + "\n" + SENTENCE)
    assert [example.instruction for example in task.examples] == ["Do 1.", "Do 2.", "Do 3."]
    assert task.examples[2].outputs == ("x3", "y3") and task.form == "sentence"


def test_the_last_example_counts_when_they_are_not_numbered():
    assert read_question(tagged("Old.", "1", "2") + tagged("New.", "3", "4") + CHOICE).examples == (
        Example("New.", ("3", "4")),
    )


def test_alpacafarm_headings():
    text = """Select the output (a) or (b). Your answer should ONLY contain: Output (a) or Output (b).
# Example:
## Instruction:
Old
## Output (a):
1
## Output (b):
2
## Which is best, Output (a) or Output (b)?
Output (a)

# Task:
## Instruction:
Sort the numbers.
## Input:
3 1 2
## Output (a):
1 2 3
# not a heading of ours
## Output (b):
3 2 1
## Which is best, Output (a) or Output (b)?"""
    example = Example("Sort the numbers.\n\n3 1 2", ("1 2 3\n# not a heading of ours", "3 2 1"))
    assert read_question(text) == JudgeTask((example,), "sentence")


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("Hello there", "an instruction"),
        ("<instruction>\nDo.\n</instruction>" + CHOICE, "the outputs"),
        ("<instruction>\nDo.\n</instruction><output_a>\nx\n</output_a>" + CHOICE, "output (b)"),
        (tagged("Do.", "x", "y") + RATING, "one output to rate"),
        (tagged("Do.", "x") + CHOICE, "two outputs to compare"),
    ],
)
def test_what_is_missing_is_named(text, missing):
    assert read_question(text) == missing


def test_several_outputs_to_rank_are_read_by_their_numbers():
    outputs = [f"out {k}" for k in range(11)]
    blocks = "\n".join(f"<output_{k + 1}>\n{text}\n</output_{k + 1}>" for k, text in enumerate(outputs))
    wish = "Answer with the numbers of all 11 outputs, best first."
    task = read_question(f"<instruction>\nDo.\n</instruction>\n{blocks}\n{wish}")
    assert task == JudgeTask((Example("Do.", tuple(outputs)),), "order")
    assert (
        read_question(f"<instruction>\nDo.\n</instruction>\n{blocks}\n{CHOICE}") == "two outputs to compare"
    )
    assert read_question(tagged("Do.", "x") + wish) == "several outputs to rank"
