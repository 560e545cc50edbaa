"""Every random choice of the annotation layer, as a pure function of the text and one seed.

`random.Random(<string>)` hashes the string with SHA-512, so the choices are the same on every platform and
Python version. The strings are AlpacaEval's and AlpacaFarm's: same rows and seed, same order, same annotator,
same noise. They depend on the prompt only, so all models meet a judge in the same position on a prompt.
"""

import random
from collections.abc import Sequence


def merged_instruction(instruction: str, input_text: str) -> str:
    """AlpacaFarm's one prompt out of instruction and input, made before seeding and prompting."""
    return f"{instruction}\n\n{input_text}" if input_text else instruction


def seed_text(instruction: str, input_text: str) -> str:
    """What pool choice and noise are seeded by (AlpacaFarm's keys): the input and the merged instruction."""
    return input_text + merged_instruction(instruction, input_text)


def is_switched(merged: str, seed: int) -> bool:
    """Whether the judge is shown output_2 first. Seeded by the merged instruction alone."""
    return random.Random(f"is_switched_outputs{merged}{seed}").choices([False, True], k=1)[0]


def pool_index(text: str, weights: Sequence[float], seed: int) -> int:
    """Which judge of the pool gets the prompt. Equal weights choose exactly as AlpacaEval's uniform pools."""
    # Without weights `choices` takes floor(random * n), as the uniform pools do; with them it bisects sums.
    uneven = None if len(set(weights)) == 1 else weights
    return random.Random(f"annotator{text}{seed}").choices(range(len(weights)), weights=uneven, k=1)[0]


def noisy_preference(text: str, p_label_flip: float, seed: int) -> int | None:
    """1 or 2 when the label is noise, else None.

    With probability 2p a fair coin replaces the judge, which flips a share p of the labels (AlpacaFarm). The
    choice is per prompt, not per pair.
    """
    if not p_label_flip:
        return None
    p = p_label_flip
    return random.Random(f"noisy_preference{text}{seed}").choices(
        [None, 1, 2], weights=[1 - 2 * p, p, p], k=1
    )[0]


def derangement(n: int, text: str, seed: int) -> list[int]:
    """A random permutation of range(n) that leaves no place where it was, n >= 2.

    A random cycle (Sattolo's algorithm, 1986): every other place is equally likely as the partner of one.
    """
    order, rng = list(range(n)), random.Random(f"derangement{text}{seed}")
    for i in range(n - 1, 0, -1):
        j = rng.randrange(i)
        order[i], order[j] = order[j], order[i]
    return order


def permutation(n: int, text: str, seed: int) -> list[int]:
    """Which of n outputs a ranking judge is shown at each place."""
    order = list(range(n))
    random.Random(f"ranking_order{text}{seed}").shuffle(order)
    return order
