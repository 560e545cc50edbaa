"""Templates with slots that work in both directions: they write instructions, and parse them back.

A `Form` is one way of asking: templates for the instruction (and for the input, when there is one), how to
draw the slots, and how to solve them into a `Task`. `parse` undoes `write`, so that the utility knows what is
right from the text of an instruction alone.
"""

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rlhf_jax.microfarm import lexicon as lx

Slots = dict[str, str]

# What a slot may hold. A slot's kind is its name without trailing digits: {item1} and {item2} are items.
SLOT_VALUES: dict[str, tuple[str, ...]] = {
    "name": lx.NAMES,
    "place": lx.PLACES,
    "event": lx.EVENTS,
    "item": lx.ITEMS,
    "thing": lx.THINGS,
    "gift": lx.GIFTS,
    "goods": lx.GOODS,
    "color": lx.CATEGORIES["color"],
    "garment": lx.CATEGORIES["garment"],
    "adjective": lx.ADJECTIVES,
    "word": lx.ITEMS + lx.ADJECTIVES,
    "sized": tuple(lx.with_article(thing) for thing in lx.SIZE_OF),
    "a_thing": tuple(lx.with_article(thing) for thing in lx.THINGS),
    "property": tuple(lx.PROPERTIES),
    "plural": tuple(lx.SINGULAR_OF),
    "count": ("two", "three", "four", "2", "3", "4"),
    "number": lx.NUMBERS,
    "verb": lx.LIKES,
    "request": lx.REQUESTS,
    "Request": tuple(word.capitalize() for word in lx.REQUESTS),
    "end": ("first", "last"),
    "size": ("bigger", "smaller"),
    "sign": ("plus", "minus"),
    "order": ("small to large", "large to small"),
    "kind": ("thank you", "sorry"),
}
_LIST = r"[A-Za-z0-9]+(?:, [A-Za-z0-9]+)*"


def _compile(template: str) -> re.Pattern[str]:
    parts, seen = [], set()
    for literal, slot in re.findall(r"([^{]*)(?:\{(\w+)\})?", template):
        parts.append(re.escape(literal))
        if not slot:
            continue
        kind = slot.rstrip("0123456789")
        if slot in seen:
            # A slot that occurs twice must hold the same text both times.
            parts.append(f"(?P={slot})")
        elif kind == "list":
            parts.append(f"(?P<{slot}>{_LIST})")
        else:
            # Longest value first: a regular expression takes the first alternative that fits, and one value
            # may begin with another.
            parts.append(f"(?P<{slot}>{'|'.join(sorted(SLOT_VALUES[kind], key=len, reverse=True))})")
        seen.add(slot)
    return re.compile("".join(parts))


@dataclass(frozen=True)
class Task:
    """What one instruction asks for, and the ways in which its answer may be written.

    Attributes:
      family: name of the instruction family.
      shape: "list" (marked lines) or "sentence".
      answers: right answers in order, or, when `ordered` is false, all that would be right.
      count: how many answers are asked for.
      universe: words that are claims when a response mentions them, whatever their case unless `cased`.
      patterns: acceptable wordings, "{0}", "{1}" standing for the answers; for a list, its lead-in lines.
      bare: the terse wording of the same; by default the answers alone.
      wrong: for each answer, plausible wrong ones; where empty, a wrong answer is a wrong order.
      wrong_wordings: (wording, bare wording) pairs to use instead, where swapping a word would not do.
      echo: words of the question which a response may repeat once without claiming them.
      anchor: which end of the response carries the claim when question words are repeated: "first" or "last".
    """

    family: str
    shape: str
    answers: tuple[str, ...]
    universe: frozenset[str]
    patterns: tuple[str, ...]
    bare: str = ""
    wrong: tuple[tuple[str, ...], ...] = ()
    wrong_wordings: tuple[tuple[str, str], ...] = ()
    count: int = 0
    ordered: bool = True
    echo: tuple[str, ...] = ()
    anchor: str = "last"
    cased: bool = False

    def __post_init__(self) -> None:
        if not self.count:
            # A frozen dataclass allows no plain assignment, not even while it is made.
            object.__setattr__(self, "count", len(self.answers))


@dataclass(frozen=True)
class Form:
    """One way of asking; `weight` is its share of the world, before normalisation."""

    family: str
    weight: float
    templates: tuple[str, ...]
    draw: Callable[[random.Random], Slots]
    solve: Callable[[Mapping[str, str]], Task]
    inputs: tuple[str, ...] = ()
    _readers: tuple[re.Pattern[str], ...] = field(init=False, repr=False)
    _input_readers: tuple[re.Pattern[str], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_readers", tuple(_compile(t) for t in self.templates))
        object.__setattr__(self, "_input_readers", tuple(_compile(t) for t in self.inputs))

    def write(self, rng: random.Random) -> tuple[str, str, Task]:
        """Draw one (instruction, input, task) of this form."""
        # The order of these draws is part of the data: another order gives another world for the same seed.
        slots = self.draw(rng)
        instruction = rng.choice(self.templates).format(**slots)
        text = rng.choice(self.inputs).format(**slots) if self.inputs else ""
        return instruction, text, self.solve(slots)

    def parse(self, instruction: str, text: str) -> Task | None:
        """Find the task that `instruction` and input `text` ask for; None if this form did not write them."""
        # The same words with and without an input are different questions.
        if bool(text) != bool(self.inputs):
            return None
        for slots in _matches(self._readers, instruction):
            if not self.inputs:
                return self.solve(slots)
            for more in _matches(self._input_readers, text):
                # The input must speak of what the instruction asks about ("the hat", "Anna").
                if all(slots.get(key, value) == value for key, value in more.items()):
                    return self.solve({**slots, **more})
        return None


def _matches(readers: tuple[re.Pattern[str], ...], text: str) -> list[Slots]:
    return [match.groupdict() for match in (reader.fullmatch(text) for reader in readers) if match]
