"""The orders in which a judge is shown a pair, and how their verdicts become one label.

seeded: one order, drawn by the prompt (AlpacaEval). both_average: the mean of both. both_agree: the label both
give, a tie where they differ (FastChat, sparse_feedback). both_two_games: each a judgment of its own
(Arena-Hard).
"""

from collections.abc import Sequence
from dataclasses import replace

from rlhf_jax.annotation.answers.answers import OK
from rlhf_jax.annotation.judges import random_choices
from rlhf_jax.annotation.kinds.asking import Reply
from rlhf_jax.annotation.parsing.contracts import BOTH_AGREE, SEEDED, Parsed

# The outputs of a row in the order they are shown in.
SHOWN = {"12": ("output_1", "output_2"), "21": ("output_2", "output_1")}


def orders_of(policy: str, merged: str, seed: int) -> tuple[str, ...]:
    """Return the orders in which a pair is shown; `merged` is its instruction and input."""
    if policy == SEEDED:
        return ("21",) if random_choices.is_switched(merged, seed) else ("12",)
    return ("12", "21")


def in_rows_order(parsed: Parsed, order: str) -> Parsed:
    """Turn a label for the order shown into one for the row's own order of outputs."""
    if parsed.preference is None or order == "12":
        return parsed
    # 3 - x swaps the two ends of [1, 2].
    return replace(parsed, preference=3.0 - parsed.preference)


def judged(replies: Sequence[Reply], orders: Sequence[str], policy: str) -> tuple[Parsed, dict]:
    """Make one label of the reply to one order or to both, and the columns that say how.

    One of two orders without an answer leaves the pair without a label, with the status of that order.
    """
    said = [in_rows_order(reply.parsed, order) for reply, order in zip(replies, orders, strict=True)]
    if len(said) == 1:
        return said[0], {"order": orders[0]}
    first, swapped = (one.preference for one in said)
    known = first is not None and swapped is not None
    columns = {
        "order": "both",
        "preference_first_order": first,
        "preference_swapped": swapped,
        "position_consistent": side(first) == side(swapped) if known else None,
    }
    # One order alone would carry the very position bias that the other should cancel.
    if not known:
        return next(one for one in said if one.status != OK), columns
    masses = [one.mass for one in said if one.mass is not None]
    mean = (first + swapped) / 2
    if policy == BOTH_AGREE and side(first) != side(swapped):
        mean = 1.5
    # The label is only as sure as the less sure of the two answers.
    return Parsed(mean, OK, mass=min(masses, default=None), explanation=said[0].explanation), columns


def side(preference: float) -> int:
    """Return 1 or 2 for the better output, 0 for a tie."""
    return 0 if preference == 1.5 else 1 if preference < 1.5 else 2
