"""The instruction families: everything that can be asked in the embedded world, with the right answers."""

import random
from functools import lru_cache

from rlhf_jax.microfarm.families import recall, working, writing
from rlhf_jax.microfarm.grammar import Form, Task

FORMS: tuple[Form, ...] = recall.FORMS + working.FORMS + writing.FORMS
FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(form.family for form in FORMS))
_WEIGHTS = tuple(form.weight for form in FORMS)


def draw_form(rng: random.Random) -> Form:
    """Draw a form with a probability proportional to its weight."""
    return rng.choices(FORMS, _WEIGHTS)[0]


# Every comparison parses the same instruction for both outputs and for every judge.
@lru_cache(maxsize=16384)
def parse(instruction: str, text: str = "") -> Task | None:
    """Find the task behind `instruction` and its input `text`; None for one from outside the world.

    The input may also stand in the instruction, after an empty line, as judges see it.
    """
    instruction, text = instruction.strip(), text.strip()
    if not text:
        instruction, _, text = instruction.partition("\n\n")
    for form in FORMS:
        try:
            task = form.parse(instruction.strip(), text.strip())
        except (KeyError, IndexError, ValueError):
            # The words fit a template but ask for the impossible: the opposite of a word without one,
            # the third of two words, the order of numbers that are no numbers.
            continue
        if task is not None:
            return task
    return None
