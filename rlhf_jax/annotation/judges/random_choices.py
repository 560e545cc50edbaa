"""The random choices about labels (order, judge, noise), each a pure function of the text and one seed.

`random.Random(<string>)` hashes the string with SHA-512, so the choices are the same on every platform and
Python version. The strings are AlpacaEval's and AlpacaFarm's: same rows and seed, same order, same annotator,
same noise. They depend on the prompt only, so all models meet a judge in the same position on a prompt.
"""

import random
from collections.abc import Sequence


def merged_instruction(instruction: str, input_text: str) -> str:
    """Merge instruction and input into one prompt as AlpacaFarm does, before seeding and prompting."""
    return f"{instruction}\n\n{input_text}" if input_text else instruction


def seed_text(instruction: str, input_text: str) -> str:
    """Return the text that seeds pool choice and noise (AlpacaFarm's keys): input, then merged instruction."""
    return input_text + merged_instruction(instruction, input_text)


def is_switched(merged: str, seed: int) -> bool:
    """Draw whether the judge is shown output_2 first, seeded by the merged instruction alone."""
    return random.Random(f"is_switched_outputs{merged}{seed}").choices([False, True], k=1)[0]


def pool_index(text: str, weights: Sequence[float], seed: int) -> int:
    """Draw the judge of the pool for a prompt. Equal weights choose exactly as AlpacaEval's uniform pools."""
    # Without weights random.choices takes floor(random * n), as AlpacaEval's uniform pools do. With equal
    # weights it bisects sums, which rounds differently.
    uneven = None if len(set(weights)) == 1 else weights
    return random.Random(f"annotator{text}{seed}").choices(range(len(weights)), weights=uneven, k=1)[0]


def noisy_preference(text: str, p_label_flip: float, seed: int) -> int | None:
    """Draw the label noise of a prompt: 1 or 2 when its label is noise, else None.

    With probability 2p a fair coin replaces the judge, which flips a share p of the labels (AlpacaFarm). The
    choice is per prompt, not per pair.
    """
    if not p_label_flip:
        return None
    # The share 2p of the labels is replaced by a fair coin, so p of them are wrong.
    p = p_label_flip
    return random.Random(f"noisy_preference{text}{seed}").choices(
        [None, 1, 2], weights=[1 - 2 * p, p, p], k=1
    )[0]


def derangement(n: int, text: str, seed: int) -> list[int]:
    """Draw a permutation of range(n), n >= 2, that leaves no element in its place.

    A random cycle (Sattolo's algorithm, 1986): every other place is equally likely as the partner of one.
    """
    order, rng = list(range(n)), random.Random(f"derangement{text}{seed}")
    for i in range(n - 1, 0, -1):
        # Below i, not up to it: that is what makes it one cycle, so that no place keeps its own.
        j = rng.randrange(i)
        order[i], order[j] = order[j], order[i]
    return order


def random_order(n: int, text: str, seed: int) -> list[int]:
    """Draw which of n outputs a ranking judge is shown at each place."""
    order = list(range(n))
    random.Random(f"ranking_order{text}{seed}").shuffle(order)
    return order
