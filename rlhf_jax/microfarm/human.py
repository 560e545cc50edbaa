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
    """Return which output this human prefers, 1 or 2. The same arguments always get the same answer.

    The order of the outputs makes no difference. Humans of different names (or seeds) draw independently.
    """
    # Sorted, so that the draw and with it the choice is the same whichever output is shown first.
    low, high = sorted((output_1, output_2))
    # repr quotes every field, so two different argument lists never give the same text, and escapes lone
    # surrogates, which encode() would refuse.
    key = repr((seed, human, instruction, input, low, high)).encode()
    # A hash in place of a random generator: the answer does not depend on what was asked before, and is the
    # same in every process, unlike Python's hash().
    draw = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") / 2**64
    # There is nothing to prefer, so the position is drawn; otherwise equal outputs would always give 1.
    if low == high:
        return 1 if draw < 0.5 else 2
    chosen = low if draw < probability(instruction, input, low, high) else high
    return 1 if chosen == output_1 else 2


def probability(instruction: str, input: str, output_1: str, output_2: str) -> float:
    """Probability, in (0, 1), that a human prefers `output_1` to `output_2`."""
    gap = utility(instruction, input, output_1) - utility(instruction, input, output_2)
    return 1 / (1 + math.exp(-gap / NOISE_SCALE))


def human_agreement(gaps: Iterable[float], scale: float = NOISE_SCALE) -> float:
    """Expected share of pairs on which two humans agree; `gaps` are utility differences, at least one."""
    chances = [1 / (1 + math.exp(-gap / scale)) for gap in gaps]
    return sum(p * p + (1 - p) * (1 - p) for p in chances) / len(chances)


def calibrate(gaps: Iterable[float], target: float = 0.66) -> float:
    """Find the noise scale at which two humans agree on a share `target`, in (0.5, 1), of such pairs."""
    gaps = list(gaps)
    low, high = 1e-3, 10.0
    # Bisection on a logarithmic scale, as the range covers four decades. Agreement falls as the scale grows.
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if human_agreement(gaps, middle) > target else (low, middle)
    return math.sqrt(low * high)
