"""Instruction families that ask for a text: notes, sentences with given words, requests, changed copies.

Questions about a text given in the input are here too. Each family has a function that draws a template's
slots, one that solves them into a `Task`, and forms in `FORMS`.
"""

import random
from collections.abc import Mapping

from rlhf_jax.microfarm import lexicon as lx
from rlhf_jax.microfarm.grammar import Form, Slots, Task


def _but(values: tuple[str, ...], *used: str) -> tuple[str, ...]:
    return tuple(value for value in values if value not in used)


def _draw_note(rng: random.Random) -> Slots:
    name1, name2 = rng.sample(lx.NAMES, 2)
    return {
        "name1": name1,
        "name2": name2,
        "kind": rng.choice(("thank you", "sorry")),
        "gift": rng.choice(lx.GIFTS),
        "event": rng.choice(lx.EVENTS),
    }


def _solve_note(slots: Mapping[str, str]) -> Task:
    to, sender, gift = slots["name1"], slots["name2"], slots["gift"]
    thanks = slots["kind"] == "thank you"
    return Task(
        family="message",
        shape="sentence",
        # All four have to be there and in this order; the words around them are free.
        answers=(to, "thank" if thanks else "sorry", gift, sender),
        universe=frozenset((*lx.NAMES, *lx.GIFTS, "thank", "sorry")),
        patterns=(
            (
                "Dear {0}, {1} you for the {2}. Best wishes, {3}.",
                "Dear {0}, I {1} you for the {2}. Yours, {3}.",
            )
            if thanks
            else (
                "Dear {0}, I am {1} about the {2}. Best wishes, {3}.",
                "Dear {0}, I am so {1} about the {2}. Yours, {3}.",
            )
        ),
        bare="{1} {0}",
        wrong=(
            _but(lx.NAMES, to, sender),
            ("sorry" if thanks else "thank",),
            _but(lx.GIFTS, gift),
            _but(lx.NAMES, to, sender),
        ),
    )


def _draw_sentence(rng: random.Random) -> Slots:
    thing1, thing2 = rng.sample(lx.THINGS, 2)
    return {
        "thing1": thing1,
        "thing2": thing2,
        "name": rng.choice(lx.NAMES),
        "event": rng.choice(lx.EVENTS),
    }


def _solve_sentence(slots: Mapping[str, str]) -> Task:
    answers = (slots["thing1"], slots["thing2"])
    others = _but(lx.THINGS, *answers)
    return Task(
        family="sentence",
        shape="sentence",
        answers=answers,
        ordered=False,
        universe=frozenset(lx.THINGS),
        wrong=(others, others),
        patterns=(
            "The {0} is near the {1}.",
            "I can see the {0} and the {1}.",
            "We like the {0} and the {1}.",
        ),
    )


def _draw_request(rng: random.Random) -> Slots:
    request = rng.choice(lx.REQUESTS)
    return {
        "request": request,
        "Request": request.capitalize(),
        "thing": rng.choice(lx.THINGS),
        "name": rng.choice(lx.NAMES),
        "event": rng.choice(lx.EVENTS),
    }


def _solve_request(slots: Mapping[str, str]) -> Task:
    # A template with an input spells the request with a capital, the others do not, and parsing finds only
    # the slot that stands in the text.
    verb, thing = slots.get("Request", slots.get("request", "")).lower(), slots["thing"]
    return Task(
        family="polite",
        shape="sentence",
        answers=("please", verb, thing),
        universe=frozenset((*lx.THINGS, *lx.REQUESTS, "please", "now")),
        # "please" is one of the answers here: a request without it has not become polite.
        patterns=("Could you {0} {1} me the {2}?", "Would you {0} {1} me the {2}?"),
        bare="{1} the {2}",
        wrong=(("now",), _but(lx.REQUESTS, verb), _but(lx.THINGS, thing)),
    )


def _draw_replace(rng: random.Random) -> Slots:
    thing1, thing2, thing3 = rng.sample(lx.THINGS, 3)
    return {
        "name": rng.choice(lx.NAMES),
        "verb": rng.choice(lx.LIKES),
        "thing1": thing1,
        "thing2": thing2,
        # The word to replace has to occur in the sentence, the new one must not.
        "thing3": rng.choice((thing1, thing2)),
        "thing4": thing3,
    }


def _solve_replace(slots: Mapping[str, str]) -> Task:
    old, new = slots["thing3"], slots["thing4"]
    before = (slots["thing1"], slots["thing2"])
    after = tuple(new if word == old else word for word in before)
    others = _but(lx.THINGS, *before, new)
    return Task(
        family="replace",
        shape="sentence",
        answers=(slots["name"], *after),
        universe=frozenset((*lx.NAMES, *lx.THINGS)),
        patterns=(f"{{0}} {slots['verb']} the {{1}} and the {{2}}.",),
        bare="{1} and {2}",
        # The usual mistake is to leave a word unchanged. Where unchanged is right, the writer skips it.
        wrong=(_but(lx.NAMES, slots["name"]), (before[0], *others[:4]), (before[1], *others[-4:])),
    )


def _draw_scene(rng: random.Random) -> Slots:
    return {
        "name": rng.choice(lx.NAMES),
        "color": rng.choice(lx.CATEGORIES["color"]),
        "garment": rng.choice(lx.CATEGORIES["garment"]),
        "place": rng.choice(lx.PLACES),
    }


def _scene_task(answer: str, values: tuple[str, ...], patterns: tuple[str, ...]) -> Task:
    return Task("extract", "sentence", (answer,), frozenset(values), patterns, wrong=(_but(values, answer),))


def _solve_color(slots: Mapping[str, str]) -> Task:
    patterns = (f"The {slots['garment']} is {{0}}.", f"The color of the {slots['garment']} is {{0}}.")
    return _scene_task(slots["color"], lx.CATEGORIES["color"], patterns)


def _solve_place(slots: Mapping[str, str]) -> Task:
    return _scene_task(slots["place"], lx.PLACES, (f"{slots['name']} lives in {{0}}.",))


def _solve_owner(slots: Mapping[str, str]) -> Task:
    return _scene_task(slots["name"], lx.NAMES, (f"{{0}} has the {slots['garment']}.", "The owner is {0}."))


# The scene always tells color, garment, name and place, so the answer has to be picked out of it.
_SCENES = (
    "{name} has a {color} {garment} and lives in {place}.",
    "{name} lives in {place} and has a {color} {garment}.",
)
FORMS: tuple[Form, ...] = (
    Form(
        "message",
        8,
        (
            "Write a {kind} note to {name1} from {name2} about the {gift}.",
            "Help {name2} write a {kind} note to {name1} about the {gift}.",
            "{name2} wants to send {name1} a {kind} note about the {gift}.",
            "After the {event}, write a {kind} note to {name1} from {name2} about the {gift}.",
        ),
        _draw_note,
        _solve_note,
    ),
    Form(
        "sentence",
        8,
        (
            "Write a sentence with the words {thing1} and {thing2}.",
            "Use the words {thing1} and {thing2} in a sentence.",
            "Help {name} write a sentence with {thing1} and {thing2}.",
            "For the {event}, write a sentence with {thing1} and {thing2}.",
            "{name} wants a sentence with {thing1} and {thing2} for the {event}.",
        ),
        _draw_sentence,
        _solve_sentence,
    ),
    Form(
        "polite",
        4,
        (
            "Make this polite: {request} me the {thing}.",
            "Help {name} ask politely: {request} me the {thing}.",
            "At the {event}, {name} says: {request} me the {thing}. Make this polite.",
        ),
        _draw_request,
        _solve_request,
    ),
    Form(
        "polite",
        5,
        (
            "Write this in a polite way.",
            "Make this request polite.",
            "Help {name} say this politely.",
            "Help {name} ask for this politely at the {event}.",
        ),
        _draw_request,
        _solve_request,
        inputs=("{Request} me the {thing}.", "{Request} me the {thing} now."),
    ),
    Form(
        "replace",
        5,
        (
            "Write {thing4} in place of {thing3}.",
            "Change {thing3} to {thing4} in the sentence.",
            "Copy the sentence but change {thing3} to {thing4}.",
        ),
        _draw_replace,
        _solve_replace,
        inputs=("{name} {verb} the {thing1} and the {thing2}.",),
    ),
    Form(
        "extract",
        3,
        (
            "What color is the {garment}?",
            "Tell me the color of the {garment}.",
            "Read this and write the color.",
        ),
        _draw_scene,
        _solve_color,
        inputs=_SCENES,
    ),
    Form(
        "extract",
        3,
        ("Where does {name} live?", "Tell me where {name} lives.", "Read this and write the place."),
        _draw_scene,
        _solve_place,
        inputs=_SCENES,
    ),
    Form(
        "extract",
        2.5,
        ("Who has the {garment}?", "Tell me who has the {garment}.", "Read this and write the owner."),
        _draw_scene,
        _solve_owner,
        inputs=_SCENES,
    ),
)
