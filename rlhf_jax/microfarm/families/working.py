"""Instruction families that ask for a small computation: sums, counts, positions, sorting.

Each has a function that draws a template's slots, one that solves them into a `Task`, and forms in `FORMS`.
"""

import random
from collections.abc import Mapping

from rlhf_jax.microfarm import lexicon as lx
from rlhf_jax.microfarm.grammar import Form, Slots, Task

_ALL_NUMBERS = frozenset(lx.NUMBERS)
_WORDS = lx.ITEMS + lx.ADJECTIVES
_ALL_WORDS = frozenset(_WORDS)
_LIST_INPUTS = ("Words: {list}", "List: {list}")


def _near(number: int) -> tuple[str, ...]:
    # Mistakes that someone could make: near the right number, and within the lexicon's 0 to 10.
    return tuple(str(n) for n in range(max(0, number - 3), min(10, number + 3) + 1) if n != number)


def _draw_sum(rng: random.Random) -> Slots:
    # At most 5 each, so that the sum is in the lexicon too.
    one, two = rng.randint(1, 5), rng.randint(1, 5)
    return {
        # Large enough for both signs: what is given away was there.
        "number1": str(max(one, two)),
        "number2": str(min(one, two)),
        "sign": rng.choice(("plus", "minus")),
        "name": rng.choice(lx.NAMES),
        "goods": rng.choice(lx.GOODS),
        "event": rng.choice(lx.EVENTS),
    }


def _sum_task(slots: Mapping[str, str], sign: str, patterns: tuple[str, ...]) -> Task:
    one, two = int(slots["number1"]), int(slots["number2"])
    total = one + two if sign == "plus" else one - two
    return Task(
        family="arithmetic",
        shape="sentence",
        answers=(str(total),),
        universe=_ALL_NUMBERS,
        wrong=(_near(total),),
        echo=(str(one), str(two)),
        patterns=patterns,
    )


def _solve_sum(slots: Mapping[str, str]) -> Task:
    question = f"{slots['number1']} {slots['sign']} {slots['number2']}"
    return _sum_task(slots, slots["sign"], (f"{question} is {{0}}.", "The answer is {0}."))


def _story(sign: str) -> tuple[str, ...]:
    # The doubled braces below survive the f-string and become the template's slots.
    verb = "gets {number2} more" if sign == "plus" else "gives away {number2}"
    return (
        f"{{name}} has {{number1}} {{goods}} and {verb}. How many are there now?",
        f"{{name}} has {{number1}} {{goods}} and {verb}. How many {{goods}} does {{name}} have?",
        f"At the {{event}}, {{name}} has {{number1}} {{goods}} and {verb}. How many are there?",
    )


def _solve_story(slots: Mapping[str, str], sign: str) -> Task:
    patterns = (f"{slots['name']} has {{0}} {slots['goods']}.", f"There are {{0}} {slots['goods']}.")
    return _sum_task(slots, sign, patterns)


def _draw_words(rng: random.Random) -> Slots:
    words = rng.sample(_WORDS, rng.choice((2, 3, 4, 5)))
    return {"list": ", ".join(words), "end": rng.choice(("first", "last")), "name": rng.choice(lx.NAMES)}


def _solve_count(slots: Mapping[str, str]) -> Task:
    length = len(slots["list"].split(", "))
    return Task(
        family="count",
        shape="sentence",
        answers=(str(length),),
        universe=_ALL_NUMBERS,
        wrong=(_near(length),),
        patterns=("There are {0} words in the list.", "The list has {0} words."),
    )


def _solve_position(slots: Mapping[str, str]) -> Task:
    words, end = slots["list"].split(", "), slots["end"]
    answer = words[0] if end == "first" else words[-1]
    return Task(
        family="position",
        shape="sentence",
        answers=(answer,),
        universe=_ALL_WORDS,
        wrong=(tuple(word for word in words if word != answer),),
        patterns=(f"The {end} word is {{0}}.", f"The {end} word in the list is {{0}}."),
    )


def _draw_larger(rng: random.Random) -> Slots:
    one, two = rng.sample(lx.NUMBERS, 2)
    return {
        "number1": one,
        "number2": two,
        "size": rng.choice(("bigger", "smaller")),
        "name": rng.choice(lx.NAMES),
    }


def _solve_larger(slots: Mapping[str, str]) -> Task:
    pair = sorted((slots["number1"], slots["number2"]), key=int)
    answer, other = pair if slots["size"] == "smaller" else pair[::-1]
    return Task(
        family="compare",
        shape="sentence",
        answers=(answer,),
        universe=_ALL_NUMBERS,
        echo=(answer, other),
        anchor="first",
        wrong=((other,),),
        patterns=(f"The {slots['size']} number is {{0}}.", f"The number {{0}} is {slots['size']}."),
    )


def _draw_sort_numbers(rng: random.Random) -> Slots:
    numbers = rng.sample(lx.NUMBERS, rng.choice((2, 3)))
    return {"list": ", ".join(numbers), "order": rng.choice(("small to large", "large to small"))}


def _solve_sort_numbers(slots: Mapping[str, str]) -> Task:
    down = slots["order"] == "large to small"
    answers = tuple(sorted(slots["list"].split(", "), key=int, reverse=down))
    # One slot per number, as the list may have two or three. Without `wrong` a mistake is a wrong order.
    blanks = ", ".join(f"{{{i}}}" for i in range(len(answers)))
    return Task(
        "sort", "sentence", answers, _ALL_NUMBERS, (f"The order is {blanks}.", f"In order: {blanks}.")
    )


def _draw_sort_words(rng: random.Random) -> Slots:
    return {"list": ", ".join(rng.sample(lx.ITEMS, rng.choice((2, 3)))), "name": rng.choice(lx.NAMES)}


def _solve_sort_words(slots: Mapping[str, str]) -> Task:
    answers = tuple(sorted(slots["list"].split(", ")))
    return Task("sort", "list", answers, _ALL_WORDS, ("Here is the list:", "Here are the words in order:"))


FORMS: tuple[Form, ...] = (
    Form(
        "arithmetic",
        0.4,
        ("What is {number1} {sign} {number2}?", "Tell {name} what {number1} {sign} {number2} is."),
        _draw_sum,
        _solve_sum,
    ),
    Form("arithmetic", 4.3, _story("plus"), _draw_sum, lambda slots: _solve_story(slots, "plus")),
    Form("arithmetic", 4.3, _story("minus"), _draw_sum, lambda slots: _solve_story(slots, "minus")),
    Form(
        "compare",
        3,
        (
            "Which number is {size}, {number1} or {number2}?",
            "Tell {name} which number is {size}, {number1} or {number2}.",
        ),
        _draw_larger,
        _solve_larger,
    ),
    Form(
        "count",
        6,
        (
            "How many words are in the list?",
            "Count the words in the list.",
            "{name} asks how many words there are.",
        ),
        _draw_words,
        _solve_count,
        inputs=_LIST_INPUTS,
    ),
    Form(
        "position",
        5,
        (
            "What is the {end} word in the list?",
            "Write the {end} word in the list.",
            "Tell {name} the {end} word in the list.",
        ),
        _draw_words,
        _solve_position,
        inputs=_LIST_INPUTS,
    ),
    Form(
        "sort",
        2,
        (
            "Sort the numbers from {order}.",
            "Put these numbers in order from {order}.",
            "Order the numbers from {order}.",
        ),
        _draw_sort_numbers,
        _solve_sort_numbers,
        inputs=("Numbers: {list}",),
    ),
    Form(
        "sort",
        2,
        (
            "Sort the words from A to Z.",
            "List these words in order from A to Z.",
            "Help {name} sort the words from A to Z.",
        ),
        _draw_sort_words,
        _solve_sort_words,
        inputs=("Words: {list}",),
    ),
)
