"""Rules for judges and for what they measured: a taste for a place or for length, win rates that are length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from rlhf_jax.evaluation.doctor.findings import NOTE, PROBLEM, WARNING, Rule, Seen
from rlhf_jax.evaluation.doctor.trends import share_interval
from rlhf_jax.evaluation.leaderboards.leaderboard import LeaderboardRow
from rlhf_jax.evaluation.measures.agreement import Biases

# Points from 50. AlpacaEval's judges take the first output in 45.6 to 54 % of pairs, which nobody minds.
_PLACE, _MUCH_PLACE = 5.0, 15.0
# Percent of longer outputs preferred, where no human's labels of the same pairs are known: longer outputs may be the
# better ones. The shipped judgments of MT-bench have 68 %, AlpacaEval's annotators about 60.
_LONGER = 75.0
# Points above a human without noise on the same pairs, where one is known.
_ABOVE_HUMAN = 5.0
# Points of win rate that go when lengths are held equal: more than two standard errors of 800 instructions.
_OF_LENGTH = 4.0


class JudgeTaste(NamedTuple):
    """What a judge prefers besides quality, in percent.

    human: how often a human prefers the longer output of the same pairs, with their noise taken out; NaN where that is
    not known. alone: whether labels are its own, and not one part of a pool's, in which tastes may cancel.
    """

    name: str
    biases: Biases
    human: float = math.nan
    alone: bool = True


def without_noise(rate: float, agreement: float) -> float:
    """A human's preference in percent, had they no noise. agreement: with another human, in percent; NaN below 50.

    If each errs on a share e of pairs, two agree on 1 - 2 e (1 - e) of them, and a preference p is seen as
    e + (1 - 2 e) p. A judge that errs less than people shows the same taste more clearly, which is no bias.
    """
    if not agreement > 50:
        return math.nan
    sure = math.sqrt(2 * agreement / 100 - 1)
    return 100 * min(1.0, max(0.0, 0.5 + (rate / 100 - 0.5) / sure))


def judge_prefers_a_place(judges: Sequence[JudgeTaste]) -> Seen | None:
    """A judge prefers the output that it is shown first, or second, whatever they say."""
    far = []
    for judge in judges:
        rate, n = judge.biases.prefers_first, judge.biases.n_first
        if not n or math.isnan(rate):
            continue
        low, high = share_interval(rate / 100, n)
        # The whole interval has to be outside, so that a judge with few labels is not called biased.
        away = max(low - 50, 50 - high)
        if away > _PLACE:
            far.append((away, judge, f"{judge.name} prefers the first in {rate:.1f} % of {n} pairs"))
    return _worst(far, _MUCH_PLACE)


def judge_prefers_length(judges: Sequence[JudgeTaste]) -> Seen | None:
    """A judge prefers longer outputs, more than people do on the same pairs."""
    far = []
    for judge in judges:
        rate, n = judge.biases.prefers_longer, judge.biases.n_longer
        # A judge of a pool labels a part of the pairs, on which people may prefer something else than on all of them.
        if not n or math.isnan(rate) or not judge.alone:
            continue
        known = not math.isnan(judge.human)
        away = share_interval(rate / 100, n)[0] - (judge.human + _ABOVE_HUMAN if known else _LONGER)
        if away > 0:
            people = f", a human without noise in {judge.human:.1f} %" if known else ""
            far.append((away, judge, f"{judge.name} prefers the longer in {rate:.1f} % of {n} pairs{people}"))
    return _worst(far, math.inf)


def _worst(far: Sequence[tuple[float, JudgeTaste, str]], much: float) -> Seen | None:
    """One finding on all judges that are far off; a note where only single judges of a pool are."""
    if not far:
        return None
    ranked = sorted(far, key=lambda one: -one[0])
    alone = [away for away, judge, _ in ranked if judge.alone]
    severity = NOTE if not alone else PROBLEM if max(alone) > much else WARNING
    # Three of them say it; a pool of thirteen would fill the page.
    more = f"; and {len(ranked) - 3} more" if len(ranked) > 3 else ""
    return Seen(severity, "; ".join(said for *_, said in ranked[:3]) + more)


def length_carries_the_win_rate(rows: Sequence[LeaderboardRow]) -> Seen | None:
    """Much of a method's win rate goes when outputs are compared as if all were equally long."""
    lengths = {row.method: row.avg_length for row in rows}
    found, severity = [], NOTE
    for row in rows:
        raw, equal = row.win_rate, row.length_controlled
        if raw is None or equal is None or raw.win_rate - equal.win_rate < _OF_LENGTH:
            continue
        lead = raw.win_rate - 50 > 2 * raw.standard_error
        # Only what seemed better and no longer surely is: a loser's length does not mislead anybody.
        if not lead:
            continue
        base = lengths.get(row.baseline)
        size = f" ({row.avg_length} characters, baseline {base})" if base and row.avg_length else ""
        truth = row.utility
        known = f", true utility {truth.win_rate:.1f} %" if truth is not None else ""
        said = f"{row.method} {raw.win_rate:.1f} %, at equal length {equal.win_rate:.1f} %{size}{known}"
        found.append((raw.win_rate - equal.win_rate, said))
        better = truth is not None and truth.interval[0] > 50
        if equal.win_rate - 50 < 2 * equal.standard_error and not better:
            severity = WARNING
    if not found:
        return None
    ranked = [said for _, said in sorted(found, reverse=True)]
    more = f"; and {len(ranked) - 3} more" if len(ranked) > 3 else ""
    return Seen(severity, "; ".join(ranked[:3]) + more)


JUDGE_RULES = (
    Rule(
        "judge prefers a place",
        "A judge prefers the output that it is shown first, or second, whatever the two say.",
        "A property of the judge's model and prompt. Where both orders are drawn at random it costs accuracy and not "
        "fairness; where they are not, every number is shifted.",
        ("judges", "order"),
        judge_prefers_a_place,
    ),
    Rule(
        "judge prefers length",
        "A judge prefers longer outputs, more than people do on the same pairs.",
        "A property of the judge's model and prompt. Reward models learn it from its labels, and policies from those.",
        ("judges", "length_control"),
        judge_prefers_length,
    ),
)
BOARD_RULES = (
    Rule(
        "length carries the win rate",
        "Much of a method's win rate goes when outputs are compared as if all were equally long.",
        "The judge likes length, or longer outputs are better: labels alone cannot tell which, people and true "
        "utilities can.",
        ("length_control", "judges", "regulariser"),
        length_carries_the_win_rate,
    ),
)
