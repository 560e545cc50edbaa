"""The known utility: bounds, order of qualities in every family, and the corners of reading a response."""

import itertools
import random
from statistics import mean

import pytest

from rlhf_jax.microfarm import families
from rlhf_jax.microfarm.style import CLOSERS, FILLERS, OPENERS, RUDE, TAILS, manners
from rlhf_jax.microfarm.utility import WEIGHTS, features, utility
from rlhf_jax.microfarm.writer import DEFECTS, demonstration, write_response

SUM = "What is 8 minus 4?"
LIST = "Name three fruits for Anna."
FORM_IDS = [f"{i}-{form.family}" for i, form in enumerate(families.FORMS)]


def _mean_utility(form, defects, n=60):
    rng = random.Random(0)
    values = []
    for _ in range(n):
        instruction, text, task = form.write(rng)
        values.append(utility(instruction, text, write_response(task, rng, defects)))
    return mean(values)


@pytest.mark.parametrize("form", families.FORMS, ids=FORM_IDS)
def test_excellent_answers_of_every_family_get_at_least_nine_tenths(form):
    rng = random.Random(1)
    for _ in range(100):
        instruction, text, task = form.write(rng)
        assert utility(instruction, text, write_response(task, rng)) >= 0.9


@pytest.mark.parametrize("form", families.FORMS, ids=FORM_IDS)
def test_order_of_qualities_in_every_family(form):
    best = _mean_utility(form, ())
    by_defect = {defect: _mean_utility(form, {defect}) for defect in DEFECTS}
    assert all(value < best - 0.02 for value in by_defect.values()), by_defect
    assert by_defect["flat"] > by_defect["rude"]
    assert (
        by_defect["flat"]
        > _mean_utility(form, {"flat", "unformatted"})
        > _mean_utility(form, {"flat", "unformatted", "wrong"})
    )
    assert best > by_defect["flat"] > by_defect["terse"] > _mean_utility(form, {"terse", "wrong"})


def test_any_text_gets_a_value_between_zero_and_one():
    rng = random.Random(2)
    alphabet = "abz AZ 019 .,:!?\n\n-*•1. é漢\x00<>{}%\\"
    for _ in range(400):
        form = families.draw_form(rng)
        instruction, text, task = form.write(rng)
        noise = "".join(rng.choices(alphabet, k=rng.randint(0, 60)))
        for response in (noise, demonstration(task, rng) + noise, noise + demonstration(task, rng)):
            assert 0.0 <= utility(instruction, text, response) <= 1.0
            assert 0.0 <= utility(noise, text, response) <= 1.0
            assert 0.0 <= utility(instruction, noise, response) <= 1.0


def test_weights_add_up_and_score_is_their_mean():
    assert sum(WEIGHTS.values()) == pytest.approx(1.0)
    seen = features(SUM, "", "Sure! 8 minus 4 is 4.")
    assert seen.score() == pytest.approx(utility(SUM, "", "Sure! 8 minus 4 is 4."))
    assert seen.score({"tone": 1.0}) == pytest.approx(seen.tone)


@pytest.mark.parametrize("empty", ["", "  \n ", "Sure!", "Glad to help! Hope this helps!"])
def test_no_answer_is_worth_nothing(empty):
    assert utility(LIST, "", empty) == 0.0


def test_merged_input_is_the_same_instruction():
    instruction, text = "Sort the numbers from small to large.", "Numbers: 7, 3, 9"
    response = "Sure! The order is 3, 7, 9."
    assert utility(instruction, text, response) == utility(f"{instruction}\n\n{text}", "", response) > 0.9


@pytest.mark.parametrize(
    ("instruction", "response", "correctness"),
    [
        (SUM, "8 minus 4 is 4.", 1.0),
        (SUM, "4", 1.0),
        (SUM, "The answer is four.", 1.0),
        (SUM, "8 minus 4 is 8.", 0.0),
        ("What is 3 plus 4?", "It is 7 or 8.", 0.5),
        ("Which is bigger, a plum or a horse?", "A horse is bigger than a plum.", 1.0),
        ("Which is bigger, a plum or a horse?", "A plum is bigger than a horse.", 0.0),
        ("What is the opposite of hot?", "The opposite of hot is cold.", 1.0),
        ("What is the opposite of hot?", "The opposite of hot is small.", 0.0),
        ("What is the first letter of the word apple?", "A", 1.0),
        ("What is the first letter of the word apple?", "It is a p.", 0.0),
        ("Is a cat alive?", "Yes, a cat is alive.", 1.0),
        ("Is a cat alive?", "Yes, a cat is not alive.", 0.5),
        ("Is a cat food?", "Yes, a cat is food.", 0.0),
        (LIST, "1. apple\n2. pear\n3. plum", 1.0),
        (LIST, "- apple\n- pear\n- apple", 2 / 3),
        (LIST, "- apple\n- pear\n- plum\n- grape", 0.75),
        (LIST, "- apple\n- dog\n- red", 1 / 3),
    ],
)
def test_what_counts_as_right(instruction, response, correctness):
    assert features(instruction, "", response).correctness == pytest.approx(correctness)


def test_completeness_is_the_share_of_what_was_asked_for():
    assert features(LIST, "", "- apple\n- pear").completeness == pytest.approx(2 / 3)
    assert features("Is a cat food?", "", "No, a cat is food.").completeness == pytest.approx(0.5)


def test_lists_are_wanted_where_asked_for_and_only_there():
    lines = features(LIST, "", "Here are three fruits:\n- apple\n- pear\n- plum")
    commas = features(LIST, "", "Here are three fruits: apple, pear, plum")
    assert lines.format == 1.0 > 0.5 > commas.format and lines.has_list and not commas.has_list
    assert features(SUM, "", "- The answer is 4.").format < features(SUM, "", "The answer is 4.").format


def test_courtesy_counts_once_and_rudeness_always_costs():
    plain = utility(SUM, "", "The answer is 4.")
    kind = utility(SUM, "", "Sure! The answer is 4.")
    kinder = utility(SUM, "", "Glad to help! The answer is 4. Hope this helps!")
    too_kind = utility(SUM, "", "Glad to help! Sure! Of course! The answer is 4. Hope this helps!")
    rude = utility(SUM, "", f"{RUDE[0]} The answer is 4.")
    assert rude < plain < kind < kinder and too_kind < kinder
    assert utility(SUM, "", f"Sure! The answer is 4. {RUDE[1]}") < kind


def test_every_further_word_costs_and_fillers_cost_more():
    values = [utility(SUM, "", "The answer is 4." + " It is in there." * k) for k in range(3)]
    longer = [features(SUM, "", "The answer to that is" + " not" * k + " 4.").length for k in range(30)]
    assert values[0] > values[1] and all(a > b for a, b in itertools.pairwise(longer))
    filler = features(SUM, "", "Hmm, well, the answer is 4.").length
    assert filler < features(SUM, "", "And now the answer is 4.").length
    twice = features(SUM, "", "The answer is 4. The answer is 4.")
    assert twice.correctness == 1.0 and twice.n_repeated == 4 and twice.length < 0.6


def test_manners_hold_no_answers_and_are_stripped():
    words = {w.strip("!.,").lower() for p in (*OPENERS, *CLOSERS, *RUDE, *FILLERS, *TAILS) for w in p.split()}
    rng = random.Random(0)
    for form in families.FORMS:
        for _ in range(20):
            assert not words & {word.lower() for word in form.write(rng)[2].universe if len(word) > 1}
    seen = manners("Glad to help! The hat is red. Have a nice day!")
    assert seen.core.split() == ["The", "hat", "is", "red."] and seen.n_courteous == 2


def test_instructions_from_outside_get_generic_features():
    instruction = "Explain why the sky looks blue during the day."
    good = "Sure! The sky looks blue because air scatters blue light more than red light during the day."
    assert features(instruction, "", good).family == ""
    assert (
        utility(instruction, "", good)
        > utility(instruction, "", "no idea")
        > utility(instruction, "", "")
        == 0
    )
    assert utility("", "", "") == 0.0
    # Fits a template, but asks for the impossible.
    assert families.parse("Sort the numbers from small to large.", "Numbers: red, cat") is None
    assert families.parse("Where does Anna live?", "Tom has a red hat and lives in Rome.") is None


def test_two_different_answers_rarely_tie():
    rng = random.Random(4)
    ties = total = 0
    for _ in range(1500):
        instruction, text, task = families.draw_form(rng).write(rng)
        one, two = demonstration(task, rng), demonstration(task, rng)
        total += one != two
        ties += one != two and utility(instruction, text, one) == utility(instruction, text, two)
    assert ties / total < 0.05
