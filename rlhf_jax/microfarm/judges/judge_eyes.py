"""The simulated judges: each scores the features of `utility` with weights, biases and noise of its own.

    score(output) = sum_k weight_k feature_k + longer log2(1 + words) + lists [has a list] + polite courtesies
    gap           = score(b) - score(a) - first
    P(answers b)  = sigmoid(gap / noise)

The noise has two parts, as a language model's has. A misreading, logistic with scale `noise`, is drawn once
for each pair of judge and request text: a judge reads the same request in the same way every time, but its
answer may change when the outputs swap places. The doubt that remains has the scale `HEDGE * noise`. It gives
the distribution over the answer token that log-probabilities report and that a temperature above 0 samples
from.

`measure_answer` computes how such judges agree with a human, without a server. The table was set with it so
that one judge drawn uniformly from `POOL` agrees with a human on about 65 % of pairs of demonstrations, as
the pool of AlpacaFarm does (Dubois et al. 2023, section 4.2).
"""

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rlhf_jax.microfarm.utility import Features, features

HEDGE = 0.35
# Spread of a judge's doubt about a rating, as a share of the scale.
RATING_WIDTH = 0.08
# Courtesies that a judge's bias counts; more of them in one output make no further impression.
_COURTESIES = 2
# The length in words at which the length bias leaves a rating as it is.
_USUAL_WORDS = 12
# No answer is more certain than this, so that log-probabilities stay finite.
_CLEAREST = 1e-6


@dataclass(frozen=True)
class WorldJudge:
    """One judge, a row of the table below. All but `stray` and `nonsense` are in units of utility.

    correctness..length: weights of the graded features; the utility's own are in `utility.WEIGHTS`.
    longer: per doubling of the words. lists: for a list, asked for or not. polite: per courtesy.
    first: for the output shown first (negative: for the second). noise: scale of the logistic misreading.
    stray: probability on answer tokens that name no output. nonsense: share of answers without a verdict.
    is_verbose: talks before the verdict where the form leaves room.
    """

    name: str
    correctness: float
    completeness: float
    format: float
    tone: float
    length: float
    longer: float
    lists: float
    polite: float
    first: float
    noise: float
    stray: float = 0.001
    nonsense: float = 0.0
    is_verbose: bool = False


# 01-04 judge well, 05-09 have a strong preference of their own, 10-13 have large biases and much noise.
_TABLE = (
    # name    corr. compl. format tone  length longer  lists polite first  noise  stray   nonsense verbose
    ("clean", 0.28, 0.14,  0.20,  0.22, 0.16,  0.005,  0.00, 0.00,  0.005, 0.02,  0.0005),
    ("01",    0.32, 0.16,  0.18,  0.20, 0.14,  0.020,  0.01, 0.00,  0.01,  0.07,  0.001),
    ("02",    0.24, 0.20,  0.16,  0.22, 0.10,  0.060,  0.00, 0.01, -0.01,  0.08,  0.001),
    ("03",    0.26, 0.14,  0.28,  0.20, 0.12,  0.020,  0.02, 0.00,  0.02,  0.09,  0.001),
    ("04",    0.28, 0.12,  0.18,  0.26, 0.16,  0.010,  0.00, 0.02, -0.02,  0.10,  0.002),
    ("05",    0.20, 0.10,  0.16,  0.26, 0.12,  0.030,  0.00, 0.05,  0.06,  0.14,  0.002),
    ("06",    0.22, 0.14,  0.16,  0.20, 0.08,  0.080,  0.02, 0.00, -0.05,  0.15,  0.003),
    ("07",    0.20, 0.12,  0.18,  0.22, 0.20, -0.010,  0.06, 0.00,  0.04,  0.15,  0.003),
    ("08",    0.34, 0.18,  0.12,  0.10, 0.12,  0.040,  0.02, 0.00, -0.04,  0.15,  0.004),
    ("09",    0.18, 0.12,  0.26,  0.18, 0.12,  0.040,  0.05, 0.01,  0.05,  0.17,  0.004),
    ("10",    0.18, 0.12,  0.16,  0.18, 0.08,  0.080,  0.02, 0.02,  0.10,  0.21,  0.010),
    ("11",    0.16, 0.10,  0.16,  0.22, 0.10,  0.050,  0.03, 0.04, -0.10,  0.22,  0.010,  0.00,    True),
    ("12",    0.14, 0.10,  0.20,  0.16, 0.10,  0.060,  0.06, 0.01,  0.12,  0.24,  0.015),
    ("13",    0.14, 0.10,  0.14,  0.18, 0.08,  0.090,  0.03, 0.02, -0.08,  0.28,  0.020,  0.01),
)  # fmt: skip
JUDGES: dict[str, WorldJudge] = {
    f"micro-judge-{name}": WorldJudge(f"micro-judge-{name}", *row) for name, *row in _TABLE
}
CLEAN = "micro-judge-clean"
POOL = tuple(name for name in JUDGES if name != CLEAN)


def score(judge: WorldJudge, instruction: str, output: str) -> float:
    """Score `output` as `judge` sees it, in units of utility. `instruction` includes its input, if any."""
    return sum(_parts(judge, features(instruction, "", output)).values())


def probability_b(judge: WorldJudge, instruction: str, output_a: str, output_b: str) -> float:
    """Probability, over misreadings, that `judge` at temperature 0 answers b, with a shown first."""
    return _sigmoid(_gap(judge, instruction, output_a, output_b) / judge.noise)


def perceived_probability_b(
    judge: WorldJudge, instruction: str, output_a: str, output_b: str, u: float
) -> float:
    """Probability of the answer token b once the misreading is drawn; `u` in (0, 1) is its quantile.

    It exceeds 1/2 for the share `probability_b` of all u, so greedy answers have the stated distribution.
    """
    # log(u / (1 - u)) is the quantile function of the logistic distribution.
    misread = _gap(judge, instruction, output_a, output_b) + judge.noise * math.log(u / (1 - u))
    return min(1 - _CLEAREST, max(_CLEAREST, _sigmoid(misread / (HEDGE * judge.noise))))


def perceived_share(judge: WorldJudge, instruction: str, output: str, u: float) -> float:
    """Where `judge` puts `output` on a rating scale, 0 to 1 (best); `u` is the quantile of its misreading."""
    weights = judge.correctness + judge.completeness + judge.format + judge.tone + judge.length
    # The length bias has no upper end. Measured from a usual length, it moves ratings both ways.
    usual = judge.longer * math.log2(1 + _USUAL_WORDS)
    misread = score(judge, instruction, output) - usual + judge.noise * math.log(u / (1 - u))
    return min(1.0, max(0.0, misread / weights))


def main_reason(judge: WorldJudge, instruction: str, output_a: str, output_b: str, *, winner: str) -> str:
    """Name the part of the score that favours the winner ("a" or "b") most; "other" when none does."""
    won, lost = (output_a, output_b) if winner == "a" else (output_b, output_a)
    for_won = _parts(judge, features(instruction, "", won))
    for_lost = _parts(judge, features(instruction, "", lost))
    name = max(for_won, key=lambda part: for_won[part] - for_lost[part])
    return name if for_won[name] > for_lost[name] else "other"


def uniform(*stamp: str) -> float:
    """Return a number in (0, 1), uniformly distributed, that depends on nothing but `stamp`."""
    # A request may hold lone surrogates, which plain UTF-8 refuses.
    digest = hashlib.sha256("\x1d".join(stamp).encode("utf-8", "surrogatepass")).digest()
    # 48 bits fit a double exactly; the half keeps the ends 0 and 1 out, whose logit is infinite.
    return (int.from_bytes(digest[:6], "big") + 0.5) / 2**48


def measure_answer(
    names: Iterable[str],
    pairs: Iterable[tuple[str, str, str]],
    human: Callable[[str, str, str], float],
) -> dict[str, float]:
    """Expected behaviour of one judge drawn uniformly from `names`, each pair shown in a random order.

    pairs: (instruction with its input, output 1, output 2). human: probability that a human prefers output 1.
    Returns shares in [0, 1]: "agreement" with one human, "accuracy" against the human's more likely choice,
    "longer" wins among pairs of different length in words, "first" shown wins, "flips" with the order.
    """
    judges, pairs = [JUDGES[name] for name in names], list(pairs)
    sums = dict.fromkeys(("agreement", "accuracy", "longer", "first", "flips"), 0.0)
    unequal = 0
    for instruction, one, two in pairs:
        p_human = human(instruction, one, two)
        more = _n_words(instruction, one) - _n_words(instruction, two)
        unequal += bool(more)
        for judge in judges:
            forward, backward = (
                probability_b(judge, instruction, one, two),
                probability_b(judge, instruction, two, one),
            )
            # Each order is shown half of the time, so that a bias for a position largely cancels here.
            p_one = (1 - forward + backward) / 2
            sums["agreement"] += p_one * p_human + (1 - p_one) * (1 - p_human)
            sums["accuracy"] += p_one if p_human > 0.5 else 1 - p_one if p_human < 0.5 else 0.5
            sums["longer"] += (p_one if more > 0 else 1 - p_one) if more else 0.0
            sums["first"] += (1 - forward + 1 - backward) / 2
            sums["flips"] += forward * backward + (1 - forward) * (1 - backward)
    # Pairs of equal length say nothing about a taste for length and leave this mean.
    sums["longer"] *= len(pairs) / max(1, unequal)
    return {name: total / (len(judges) * len(pairs)) for name, total in sums.items()}


def _parts(judge: WorldJudge, seen: Features) -> dict[str, float]:
    return {
        "correctness": judge.correctness * seen.correctness,
        "completeness": judge.completeness * seen.completeness,
        "format": judge.format * seen.format,
        "tone": judge.tone * seen.tone,
        "length": judge.length * seen.length,
        "longer": judge.longer * math.log2(1 + seen.n_words),
        "lists": judge.lists * seen.has_list,
        "polite": judge.polite * min(_COURTESIES, seen.n_courteous),
    }


def _gap(judge: WorldJudge, instruction: str, output_a: str, output_b: str) -> float:
    return score(judge, instruction, output_b) - score(judge, instruction, output_a) - judge.first


def _n_words(instruction: str, output: str) -> int:
    return features(instruction, "", output).n_words


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0
