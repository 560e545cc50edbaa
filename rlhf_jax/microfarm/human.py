"""The simulated human: a Bradley-Terry choice on the known utility.

    P(first is chosen) = sigmoid((utility_1 - utility_2) / NOISE_SCALE)

Two humans are two independent draws, so they agree with probability p^2 + (1 - p)^2. NOISE_SCALE is set so
that this is 66 % on average over pairs of independent answers to one instruction, the rate of agreement
between two crowd workers in AlpacaFarm (Dubois et al. 2023, section 4.2). Measured with `agreement`:
65 % on pairs of demonstrations, 66 % on samples (temperature 1) of a small model fine-tuned on them.
"""

import hashlib
import math
from collections.abc import Iterable

from rlhf_jax.microfarm.utility import utility

NOISE_SCALE = 0.165


def prefer(
    instruction: str, input: str, output_1: str, output_2: str, *, seed: int, human: str = "h0"
) -> int:
    """Which output this human prefers: 1 or 2. The same arguments always get the same answer.

    It does not depend on which output comes first. Humans of different names (or seeds) draw independently.
    """
    low, high = sorted((output_1, output_2))
    # Fields are length-prefixed by repr, so no two argument lists share a text.
    key = repr((seed, human, instruction, input, low, high)).encode()
    draw = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") / 2**64
    if low == high:
        return 1 if draw < 0.5 else 2
    chosen = low if draw < probability(instruction, input, low, high) else high
    return 1 if chosen == output_1 else 2


def probability(instruction: str, input: str, output_1: str, output_2: str) -> float:
    """Probability in (0, 1) that a human prefers `output_1`."""
    gap = utility(instruction, input, output_1) - utility(instruction, input, output_2)
    return 1 / (1 + math.exp(-gap / NOISE_SCALE))


def agreement(gaps: Iterable[float], scale: float = NOISE_SCALE) -> float:
    """Expected share of pairs on which two humans agree; `gaps` are utility differences, at least one."""
    chances = [1 / (1 + math.exp(-gap / scale)) for gap in gaps]
    return sum(p * p + (1 - p) * (1 - p) for p in chances) / len(chances)


def calibrate(gaps: Iterable[float], target: float = 0.66) -> float:
    """The noise scale at which two humans agree on a share `target` in (0.5, 1) of such pairs."""
    gaps = list(gaps)
    low, high = 1e-3, 10.0
    for _ in range(60):  # agreement falls as the scale grows
        middle = math.sqrt(low * high)
        low, high = (middle, high) if agreement(gaps, middle) > target else (low, middle)
    return math.sqrt(low * high)
