"""Answers: every form, determinism, temperature and seeds, tokens and cuts, quirks."""

import ast
import dataclasses
import json
import math

import pytest

from rlhf_jax.microfarm.judges.judge_answers import answer_question, count_tokens, write_answer
from rlhf_jax.microfarm.judges.judge_eyes import JUDGES, POOL, perceived_probability_b, uniform

CLEAN, VERBOSE, ODD = JUDGES["micro-judge-clean"], JUDGES["micro-judge-11"], JUDGES["micro-judge-13"]
INSTRUCTION, GOOD, BAD = (
    "Name three colors.",
    "Sure! Here are three colors:\n- red\n- blue\n- green",
    "ugh no",
)
CHOICE = "Answer with exactly one token: a or b."
SENTENCE = "Answer with exactly: Output (a) or Output (b)."
JSON = 'Answer with a JSON object {"concise_explanation": "...", "ordered": ["a" or "b", ...]}, best first.'
RANKING = "Answer with a Python list of dictionaries [{'model': 'a', 'rank': 1}, {'model': 'b', 'rank': 2}]."


def pair(first: str, second: str) -> str:
    blocks = {"instruction": INSTRUCTION, "output_a": first, "output_b": second}
    return "\n".join(f"<{name}>\n{body}\n</{name}>" for name, body in blocks.items())


def rating(output: str) -> str:
    data = f"<instruction>\n{INSTRUCTION}\n</instruction>\n<output>\n{output}\n</output>\n"
    return data + "Answer with one integer from 1 to 7."


@pytest.mark.parametrize(("first", "second", "best"), [(GOOD, BAD, "a"), (BAD, GOOD, "b")])
def test_every_form(first, second, best):
    text = pair(first, second)
    assert answer_question(CLEAN, text + CHOICE).text == best
    assert answer_question(CLEAN, text + SENTENCE).text == f"Output ({best})"
    found = json.loads(answer_question(CLEAN, text + JSON).text)
    assert found["ordered"] == sorted("ab", reverse=best == "b") and found["concise_explanation"]
    ranked = ast.literal_eval(answer_question(CLEAN, text + RANKING).text)
    assert {entry["rank"]: entry["model"] for entry in ranked} == {1: best, 2: "ab".replace(best, "")}


@pytest.mark.parametrize("form", [CHOICE, SENTENCE, JSON, RANKING])
@pytest.mark.parametrize("judge", [CLEAN, VERBOSE])
def test_the_verdict_token_carries_the_probability_behind_the_choice(judge, form):
    text = pair(GOOD, BAD) + form
    said = answer_question(judge, text)
    tokens = list(said.tokens())
    assert "".join(token for token, _ in tokens) == said.text and len(tokens) == said.n_tokens
    assert all(token in dict(distribution) for token, distribution in tokens)
    (at, _), (token, distribution) = said.verdicts[0], next(t for t in tokens if len(t[1]) == 5)
    assert said.text[at] == token.strip() == "a"
    u = uniform(judge.name, text, "example 0", "read")
    p_b, mass = perceived_probability_b(judge, INSTRUCTION, GOOD, BAD, u), dict(distribution)
    assert mass["b"] / (mass["a"] + mass["b"]) == pytest.approx(p_b)
    assert sum(mass.values()) == pytest.approx(1.0) and mass["Both"] == pytest.approx(judge.stray / 2)
    assert list(mass.values()) == sorted(mass.values(), reverse=True)


def test_ratings_put_the_better_output_higher():
    good, bad = answer_question(CLEAN, rating(GOOD)), answer_question(CLEAN, rating(BAD))
    assert int(good.text) > int(bad.text) + 1
    mass = dict(good.verdicts[0][1])
    assert set(mass) == set("1234567") and math.isclose(sum(mass.values()), 1.0)


def test_several_examples_are_answered_in_order():
    packed = "".join(
        f"<example_{k}>\n{pair(*outputs)}\n</example_{k}>\n"
        for k, outputs in enumerate([(GOOD, BAD), (BAD, GOOD), (GOOD, BAD)], 1)
    )
    assert answer_question(CLEAN, packed + CHOICE).text == "Example 1: a\nExample 2: b\nExample 3: a"
    ordered = [found["ordered"][0] for found in json.loads(answer_question(CLEAN, packed + JSON).text)]
    assert ordered == ["a", "b", "a"]
    said = answer_question(CLEAN, packed + SENTENCE)
    assert [said.text[at] for at, _ in said.verdicts] == ["a", "b", "a"]


def test_the_same_request_gets_the_same_answer_and_seeds_count_above_temperature_zero():
    text = pair(GOOD, GOOD) + CHOICE
    weak = JUDGES[POOL[12]]
    assert answer_question(weak, text, seed=1) == answer_question(weak, text, seed=2)
    warm = [
        answer_question(weak, text + "." * k, temperature=2.0, seed=s).text
        for k in range(6)
        for s in range(20)
    ]
    assert warm == [
        answer_question(weak, text + "." * k, temperature=2.0, seed=s).text
        for k in range(6)
        for s in range(20)
    ]
    assert any(len(set(warm[20 * k : 20 * k + 20])) == 2 for k in range(6))


def test_a_hot_judge_draws_from_the_reported_distribution():
    text = pair(GOOD, GOOD) + CHOICE
    texts = [text + " " * k for k in range(40)]
    said = next(
        a for a in (answer_question(ODD, t) for t in texts) if 0.2 < dict(a.verdicts[0][1]).get("b", 0) < 0.4
    )
    text = next(t for t in texts if answer_question(ODD, t) == said)
    draws = [answer_question(ODD, text, temperature=1.0, seed=seed) for seed in range(2000)]
    drawn = [a.text for a in draws if a.verdicts]
    mass = dict(said.verdicts[0][1])
    expected = mass["b"] / (mass["a"] + mass["b"])
    assert drawn.count("b") / len(drawn) == pytest.approx(expected, abs=0.04)


def test_judge_13_sometimes_answers_nonsense_and_only_it():
    texts = [pair(f"{GOOD} {k}", BAD) + CHOICE for k in range(3000)]
    odd = [answer_question(ODD, text) for text in texts]
    assert 0.004 < sum(not said.verdicts for said in odd) / 3000 < 0.02
    assert all(said.text not in ("a", "b") for said in odd if not said.verdicts)
    assert all(answer_question(VERBOSE, text).verdicts for text in texts[:100])


def test_the_verbose_judge_talks_before_its_verdict_unless_one_token_was_asked_for():
    text = pair(GOOD, BAD)
    sentence = answer_question(VERBOSE, text + SENTENCE).text
    assert sentence.endswith("Output (a)") and sentence.count("Output (") == 1 and len(sentence) > 60
    assert "```json" in answer_question(VERBOSE, text + JSON).text
    assert answer_question(VERBOSE, text + CHOICE).text in ("a", "b")


def test_an_answer_is_cut_after_so_many_tokens():
    whole = answer_question(VERBOSE, pair(GOOD, BAD) + SENTENCE)
    assert whole.cut(whole.n_tokens) == whole and not whole.is_cut
    part = whole.cut(5)
    assert part.is_cut and part.n_tokens == 5 and whole.text.startswith(part.text) and part.verdicts == ()
    assert whole.cut(whole.n_tokens - 1).verdicts == whole.verdicts


def test_without_a_task_the_judge_says_what_it_misses():
    assert "could not find an instruction" in answer_question(CLEAN, "Hello!").text
    assert answer_question(CLEAN, "").verdicts == ()


def test_tokens_cover_any_text():
    for text in ("", "a_b  c\n\té 漢字 (a)['b']", "word" * 9):
        said = dataclasses.replace(answer_question(CLEAN, "?"), text=text)
        assert "".join(token for token, _ in said.tokens()) == text
    assert count_tokens("Output (a)") == 4


def test_an_order_puts_the_better_outputs_first_and_names_each_once():
    outputs = ("no idea", "1. apple\n2. pear\n3. plum", "apple, pear")
    first = 0
    for i in range(20):
        blocks = "\n".join(f"<output_{k + 1}>\n{text}\n</output_{k + 1}>" for k, text in enumerate(outputs))
        text = f"<instruction>\nList 3 fruits. ({i})\n</instruction>\n{blocks}\nAnswer with the numbers of all 3."
        said = answer_question(JUDGES["micro-judge-clean"], text).text.split(" > ")
        assert sorted(said) == ["1", "2", "3"]
        first += said[0] == "2"
    assert first >= 16


def test_the_writer_follows_instructions_of_its_world_alike_for_the_same_stamp():
    assert write_answer("What is 2 plus 3?", "x") == write_answer("What is 2 plus 3?", "x")
    said = {write_answer("What is 2 plus 3?", str(k)).text for k in range(30)}
    assert len(said) > 5 and any("5" in text for text in said)
    assert write_answer("Who are you?", "x").text == "I do not know."
