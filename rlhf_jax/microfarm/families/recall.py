"""Instruction families that ask for knowledge: lists, yes or no, opposites, first letters, sizes.

Each has a function that draws a template's slots, one that solves them into a `Task`, and forms in `FORMS`.
"""

import random
from collections.abc import Mapping

from rlhf_jax.microfarm import lexicon as lx
from rlhf_jax.microfarm.grammar import Form, Slots, Task

_ALL_ITEMS = frozenset(lx.ITEMS)
_ALL_ADJECTIVES = frozenset(lx.ADJECTIVES)
_COUNT_WORD = {"2": "two", "3": "three", "4": "four"}


def _draw_list(rng: random.Random) -> Slots:
    category = rng.choice(tuple(lx.CATEGORIES))
    return {
        "plural": lx.PLURALS[category],
        "count": rng.choice(("two", "three", "four", "2", "3", "4")),
        "name": rng.choice(lx.NAMES),
        "event": rng.choice(lx.EVENTS),
    }


def _solve_list(slots: Mapping[str, str]) -> Task:
    plural, word = slots["plural"], _COUNT_WORD.get(slots["count"], slots["count"])
    pool = lx.CATEGORIES[lx.SINGULAR_OF[plural]]
    others = tuple(item for item in lx.ITEMS if item not in pool)
    count = int(lx.NUMBER_WORDS[word])
    return Task(
        family="list",
        shape="list",
        # Any of the category is right: the answers are all that may be named, `count` is how many to name.
        answers=pool,
        count=count,
        ordered=False,
        universe=_ALL_ITEMS,
        wrong=(others,) * count,
        patterns=(f"Here are {word} {plural}:", f"These are {word} {plural}:"),
    )


def _draw_yes_no(rng: random.Random) -> Slots:
    name = rng.choice(tuple(lx.PROPERTIES))
    owners = lx.CATEGORIES[lx.PROPERTIES[name]]
    others = tuple(thing for thing in lx.THINGS if thing not in owners)
    return {
        "property": name,
        # Half of the questions are true, so that always saying yes gains nothing.
        "a_thing": lx.with_article(rng.choice(owners if rng.random() < 0.5 else others)),
        "name": rng.choice(lx.NAMES),
        "event": rng.choice(lx.EVENTS),
    }


def _solve_yes_no(slots: Mapping[str, str]) -> Task:
    thing, name = slots["a_thing"], slots["property"]
    yes = lx.CATEGORY_OF[lx.BARE[thing]] == lx.PROPERTIES[name]
    yes_wording, no_wording = (f"Yes, {thing} is {name}.", "yes"), (f"No, {thing} is not {name}.", "no")
    right, wrong = (yes_wording, no_wording) if yes else (no_wording, yes_wording)
    return Task(
        family="yes_no",
        shape="sentence",
        # A "no" that forgets its "not" contradicts itself, and so does a "yes" that has one.
        answers=("yes",) if yes else ("no", "not"),
        universe=frozenset(("yes", "no", "not")),
        patterns=(right[0],),
        bare=right[1],
        wrong_wordings=(wrong,),
    )


def _draw_opposites(rng: random.Random) -> Slots:
    # One draw serves all three forms of the family; a template takes the slots it names.
    words = rng.sample(lx.ADJECTIVES, 3)
    return {
        "adjective": words[0],
        "event": rng.choice(lx.EVENTS),
        "adjective1": words[0],
        "adjective2": words[1],
        "list": ", ".join(words[: rng.choice((2, 3))]),
        "name": rng.choice(lx.NAMES),
    }


def _opposite_task(words: tuple[str, ...], shape: str, patterns: tuple[str, ...]) -> Task:
    answers = tuple(lx.OPPOSITE[word] for word in words)
    others = tuple(tuple(a for a in lx.ADJECTIVES if a not in (*words, *answers)) for _ in words)
    return Task("opposite", shape, answers, _ALL_ADJECTIVES, patterns, wrong=others, echo=words)


def _solve_opposite(slots: Mapping[str, str]) -> Task:
    word = slots["adjective"]
    return _opposite_task((word,), "sentence", (f"The opposite of {word} is {{0}}.", "It is the word {0}."))


def _solve_two_opposites(slots: Mapping[str, str]) -> Task:
    words = (slots["adjective1"], slots["adjective2"])
    return _opposite_task(words, "sentence", ("The opposites are {0} and {1}.", "They are {0} and {1}."))


def _solve_opposite_list(slots: Mapping[str, str]) -> Task:
    return _opposite_task(tuple(slots["list"].split(", ")), "list", ("Here are the opposites:",))


def _draw_letter(rng: random.Random) -> Slots:
    return {
        "word": rng.choice(lx.ITEMS + lx.ADJECTIVES),
        "name": rng.choice(lx.NAMES),
        "event": rng.choice(lx.EVENTS),
    }


def _solve_letter(slots: Mapping[str, str]) -> Task:
    word = slots["word"]
    answer = word[0].upper()
    return Task(
        family="letter",
        shape="sentence",
        answers=(answer,),
        universe=frozenset(lx.LETTERS),
        # "a" is an article, "A" a letter.
        cased=True,
        wrong=(tuple(letter for letter in lx.LETTERS if letter != answer),),
        patterns=(f"The first letter of {word} is {{0}}.", f"The word {word} starts with {{0}}."),
    )


def _draw_compare(rng: random.Random) -> Slots:
    # From different tiers: within one it is open to dispute which thing is bigger.
    one, two = rng.sample(range(len(lx.SIZE_TIERS)), 2)
    return {
        "sized1": lx.with_article(rng.choice(lx.SIZE_TIERS[one])),
        "sized2": lx.with_article(rng.choice(lx.SIZE_TIERS[two])),
        "size": rng.choice(("bigger", "smaller")),
        "name": rng.choice(lx.NAMES),
        "event": rng.choice(lx.EVENTS),
    }


def _solve_compare(slots: Mapping[str, str]) -> Task:
    pair = sorted((lx.BARE[slots["sized1"]], lx.BARE[slots["sized2"]]), key=lx.SIZE_OF.__getitem__)
    answer, other = pair if slots["size"] == "smaller" else pair[::-1]
    return Task(
        family="compare",
        shape="sentence",
        answers=(answer,),
        universe=frozenset(lx.SIZE_OF),
        # "A horse is bigger than a plum" names both things; the claim is the one that comes first.
        echo=(answer, other),
        anchor="first",
        wrong=((other,),),
        patterns=(f"The {{0}} is {slots['size']}.", f"The {{0}} is the {slots['size']} one."),
    )


# The number of a form is its weight. A form that can make few different instructions has a small one, because
# no instruction occurs twice and it would soon run out.
FORMS: tuple[Form, ...] = (
    Form(
        "list",
        11,
        (
            "List {count} {plural} for the {event}.",
            "Name {count} {plural} for {name}.",
            "{name} wants a list of {count} {plural} for the {event}.",
            "Give {name} {count} {plural} for the {event}.",
            "What are {count} {plural} that {name} may like?",
            "Write down {count} {plural} for the {event} with {name}.",
        ),
        _draw_list,
        _solve_list,
    ),
    Form(
        "yes_no",
        8,
        (
            "Is {a_thing} {property}?",
            "Tell {name} if {a_thing} is {property}.",
            "{name} asks if {a_thing} is {property}.",
            "{name} asks at the {event} if {a_thing} is {property}.",
            "Tell {name} at the {event} if {a_thing} is {property}.",
            "Would {name} say at the {event} that {a_thing} is {property}?",
        ),
        _draw_yes_no,
        _solve_yes_no,
    ),
    Form(
        "opposite",
        1.2,
        (
            "What is the opposite of {adjective}?",
            "Tell {name} the opposite of {adjective}.",
            "{name} wants the opposite of {adjective} for the {event}.",
        ),
        _draw_opposites,
        _solve_opposite,
    ),
    Form(
        "opposite",
        4.8,
        (
            "What are the opposites of {adjective1} and {adjective2}?",
            "Tell {name} the opposites of {adjective1} and {adjective2}.",
            "{name} wants the opposites of {adjective1} and {adjective2} for the {event}.",
        ),
        _draw_opposites,
        _solve_two_opposites,
    ),
    Form(
        "opposite",
        4,
        (
            "Write the opposite of each word.",
            "List the opposites of these words.",
            "{name} wants a list of the opposites.",
        ),
        _draw_opposites,
        _solve_opposite_list,
        inputs=("Words: {list}",),
    ),
    Form(
        "letter",
        7,
        (
            "What is the first letter of the word {word}?",
            "Tell {name} the first letter of {word}.",
            "{name} wants the first letter of {word}.",
            "Write the first letter of {word} for {name}.",
            "At the {event}, {name} asks for the first letter of {word}.",
            "{name} needs the first letter of {word} for the {event}.",
        ),
        _draw_letter,
        _solve_letter,
    ),
    Form(
        "compare",
        7,
        (
            "Which is {size}, {sized1} or {sized2}?",
            "Tell {name} which is {size}, {sized1} or {sized2}.",
            "{name} asks which is {size}, {sized1} or {sized2}.",
            "{name} asks at the {event} which is {size}, {sized1} or {sized2}.",
        ),
        _draw_compare,
        _solve_compare,
    ),
)
